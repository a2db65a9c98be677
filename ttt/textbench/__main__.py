"""The harness's own command line with our model in it: ``python -m ttt.textbench --model ttt --model_args pretrained=RUN``.

Released versions of lm-evaluation-harness know their built-in models only, so ours has to be registered in the same process.
"""

from ttt.errors import TttError


def main() -> None:
    """Register the model, then hand over."""
    from ttt.textbench.harness import load_scorer
    from ttt.textbench.harness_tasks import harness_version

    try:
        harness_version()
        from lm_eval.__main__ import cli_evaluate

        from ttt.textbench.harness_model import register

        register(load_scorer)
        cli_evaluate()
    except TttError as error:
        raise SystemExit(f"ttt: {error}") from error


if __name__ == "__main__":
    main()
