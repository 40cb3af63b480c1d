"""The tasks of SuperGLUE with small models: pretrain a teacher and a student, then fine-tune both on every task.

    plan.py     what is run: the steps and their command lines
    report.py   the table, and the commands as they can be typed

The steps run as those of the quick start do (`scripts/quickstart/runner.py`), and go on where they stopped. The models
are far too small to say anything about a method: what this shows is that every task runs from file to score.
"""
