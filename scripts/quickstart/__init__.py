"""The quick start: the whole path from text to a scored student, by the real entry scripts, in some minutes on a CPU.

    steps.py        the steps that an experiment is made of: reasons and command lines
    plan.py         the experiment of the quick start: what a student gains by a teacher
    compression.py  the experiment `--recipe glmd-al`: what half of the vocabulary costs
    runner.py       starts the steps as child processes, shows them, skips what is done
    report.py       reads the records of the steps; table and curves

Standard library, rich and matplotlib only: everything that trains runs in the children.
"""
