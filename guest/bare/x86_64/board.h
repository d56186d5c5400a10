/* SPDX-License-Identifier: MIT */
#include "pc/board.h"
