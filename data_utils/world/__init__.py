"""A small English world that the project makes itself: text to read, and tasks that only a reader can do.

`write_world` writes it to a folder, `python -m data_utils.world OUT` does so from the command line. Everything is drawn
with `random.Random` from one seed; the words are in `lists.py`, the sentence forms in `templates.py`.
"""

from data_utils.world.build import WORLD_VERSION, write_world

__all__ = ["WORLD_VERSION", "write_world"]
