# Starts a command on every GPU, of one node or of several.  Sourced, not run.
#
#   . recipes/_shared/launch.sh; launch 8 ttt train --config ...
#
# Several nodes: run the same script on each of them, with NNODES, NODE_RANK and MASTER_ADDR (MASTER_PORT: 29500) set; under
# SLURM (one task a node) they are taken from its variables.  run.dir must be in a folder that all nodes see.

launch() {
    local gpus=$1 nodes=${NNODES:-${SLURM_NNODES:-1}}; shift
    if [ "$nodes" -eq 1 ]; then
        if [ "$gpus" -eq 1 ]; then "$@"; else torchrun --standalone --nproc-per-node "$gpus" --no-python "$@"; fi
        return
    fi
    local node=${NODE_RANK:-${SLURM_NODEID:-}} master=${MASTER_ADDR:-}
    if [ -z "$master" ] && [ -n "${SLURM_JOB_NODELIST:-}" ]; then
        # All of the output, then its first line: "| head" would end scontrol by a broken pipe now and then.
        master=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
        master=${master%%$'\n'*}
    fi
    [ -n "$node" ] || { echo "launch: NNODES=$nodes, but NODE_RANK is not set" >&2; return 2; }
    [ -n "$master" ] || { echo "launch: NNODES=$nodes, but MASTER_ADDR is not set" >&2; return 2; }
    torchrun --nnodes "$nodes" --node-rank "$node" --nproc-per-node "$gpus" --master-addr "$master" \
        --master-port "${MASTER_PORT:-29500}" --no-python "$@"
}
