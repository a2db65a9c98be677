from ttt.cli.main import main


def test_list(capsys):
    assert main(["list", "noise"]) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("noise: noise schedule\n")
        and "  polynomial" in out
        and "power=2.0" in out
        and "schedules.py:" in out
    )
    assert main(["list", "strategy", "--markdown"]) == 0
    out = capsys.readouterr().out
    assert "| name | fields | what it is |" in out and "| `sst` | `p=0.5`" in out


def test_list_all_families(capsys):
    from ttt.registry.core import FAMILIES

    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(f"{key}: " in out for key in FAMILIES)
