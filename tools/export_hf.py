"""Megatron checkpoint -> Hugging Face folder behind the gate, the same as `octo export`.

python tools/export_hf.py CKPT HF_DIR [--dtype bf16] [--processes 4] [--shard-gb 5] [--skip PART]
"""

import sys

from octo_megatron.lineage.convert_command import convert

if __name__ == "__main__":
    sys.exit(convert(["export", *sys.argv[1:]]))
