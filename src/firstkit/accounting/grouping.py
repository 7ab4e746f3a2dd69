"""By what usage is broken down; apart from the reports, so that naming a grouping does not import a database."""

from __future__ import annotations

from enum import Enum


class Grouping(str, Enum):
    """By what a report may be broken down. Days are those of UTC."""

    DAY = "day"
    PROJECT = "project"
    USER = "user"
    KEY = "key"
    MODEL = "model"
    CLUSTER = "cluster"


class NodeHourGrouping(str, Enum):
    """By what node-hours may be broken down, beside cluster, account and project. Months are those of UTC."""

    MONTH = "month"
    MODEL = "model"
