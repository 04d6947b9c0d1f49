"""What a step costs, measured: `make bench`, never part of `make test`.

Machines are shared and their clocks move, so no time is reported alone: all that is compared is run in turns in one
process, forwards and backwards (A B C C B A), and what counts is the ratio within a turn. pytest-benchmark times one
candidate after the other, and so is not used here.
"""
