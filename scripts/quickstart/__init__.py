"""The quick start: the whole path from text to a scored student, by the real entry scripts, in some minutes on a CPU.

    plan.py     what is run: the steps, their reasons, their command lines
    runner.py   starts the steps as child processes, shows them, skips what is done
    report.py   reads the records of the steps; table and curves

Standard library, rich and matplotlib only: everything that trains runs in the children.
"""
