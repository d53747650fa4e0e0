#!/bin/bash
# Submits the steps of configs/smollm2-135m.yaml in order. Run it from where the recipe's path is seen.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
submit() { sbatch --parsable --kill-on-invalid-dep=yes "$@" | cut -d ';' -f 1; }

job0=$(submit "$here"/corpus.sbatch)
echo corpus "$job0"
job1=$(submit --dependency=afterok:$job0 "$here"/tokenizer.sbatch)
echo tokenizer "$job1"
job2=$(submit --dependency=afterok:$job0:$job1 "$here"/tokens.sbatch)
echo tokens "$job2"
job3=$(submit --dependency=afterok:$job1:$job2 "$here"/base.sbatch)
echo base "$job3"
