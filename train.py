"""Learn a circuit: `python train.py task=ioi`. See README.md; every setting lives in conf/."""

import sys

from circuitlit.cli.main import run_verb

if __name__ == "__main__":
    run_verb("train", sys.argv)
