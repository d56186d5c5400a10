# SPDX-License-Identifier: MIT
"""A guest begins, writes, reads and ends; and what ends it otherwise."""

import threading
import time
from pathlib import Path

import pytest
from conftest import ARCHITECTURES, Build
