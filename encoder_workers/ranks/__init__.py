"""One tower over a group of rank processes: items placed whole or split, attention exchanged head-wise."""

from encoder_workers.ranks.tower import GroupTower, load_group_tower

__all__ = ["GroupTower", "load_group_tower"]
