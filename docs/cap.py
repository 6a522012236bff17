#!/usr/bin/env python3
"""Draws docs/cap.svg from a recorded run: slots configured and in force over time.

cargo test --test adapt far_too_high -- --nocapture | python3 docs/cap.py > docs/cap.svg
"""

import json
import re
import sys

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 860, 46, 844, 42, 264
CONFIGURED, BEFORE, AFTER = 60, 18, 60

line = next((line for line in sys.stdin if "slots in force by seconds" in line), None)
if line is None:
    sys.exit("the run has not recorded its slots: does its test pass, and was --nocapture given?")
grown = float(re.search(r"grows after ([\d.]+)s", line).group(1))
points = json.loads(re.search(r"\[.*\]", line).group(0).replace("(", "[").replace(")", "]"))
end = points[-1][0] + 3


def x(seconds):
    return LEFT + (RIGHT - LEFT) * seconds / end


def y(slots):
    return BOTTOM - (BOTTOM - TOP) * slots / CONFIGURED


def text(at, slots, words, colour="#555", anchor="start", above=0):
    print(f'<text x="{at:.1f}" y="{y(slots) - above:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>')


def line_of(path, colour, more=""):
    print(f'<path d="{path}" stroke="{colour}" fill="none"{more}/>')


lowest = min(slots for seconds, slots in points if seconds < grown)
settled = [slots for seconds, slots in points if 5 < seconds < grown]
told = (
    f"{CONFIGURED} slots configured. In force fall to {lowest}, are {min(settled, default=lowest)} to "
    f"{max(settled, default=lowest)} from the fifth second on, and all again {points[-1][0] - grown:.0f} s after the "
    "database grows."
)
print(
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 300" font-family="sans-serif" font-size="12" '
    f'role="img" aria-label="{told}">'
)
print(f'<rect width="{WIDTH}" height="300" fill="#fff"/>')
for slots in range(0, CONFIGURED + 1, 10):
    line_of(f"M{LEFT} {y(slots):.1f}H{RIGHT}", "#e5e7eb")
    text(LEFT - 8, slots, slots, anchor="end", above=-4)
for seconds in range(0, int(end) + 1, 5):
    text(x(seconds), 0, f"{seconds} s", anchor="middle", above=-18)
line_of(f"M{LEFT} {y(CONFIGURED):.1f}H{RIGHT}", "#9ca3af", ' stroke-width="2"')
text(RIGHT - 4, CONFIGURED, f"configured: {CONFIGURED}", "#6b7280", "end", above=6)
line_of(
    f"M{LEFT} {y(BEFORE):.1f}H{x(grown):.1f}V{y(AFTER):.1f}H{RIGHT}",
    "#dc2626",
    ' stroke-dasharray="5 4"',
)
text(x(2), BEFORE, f"the database has {BEFORE} connections", "#dc2626", above=8)
text(x(grown) + 6, 50, f"now {AFTER}", "#dc2626")
steps = [f"M{x(points[0][0]):.1f} {y(points[0][1]):.1f}"]
steps += [f"H{x(seconds):.1f}V{y(slots):.1f}" for seconds, slots in points[1:]]
line_of("".join(steps) + f"H{RIGHT}", "#2563eb", ' stroke-width="2"')
text(x(grown + 14), 20, "in force", "#2563eb")
print("</svg>")
