"""What the fork server does before it forks workers: import what they need and use it once, so that a new one is quick.

(sympy imports much of itself, and fills its caches, only at the first comparisons.)
"""

from prism.services.grader import worker
from prism.services.grader.kinds import compare
from prism.services.grader.sandbox import outlive_thread
from prism.services.grader.verdict import AnswerPair

__all__ = ["worker"]

for gold, answer in [
    (r"\frac{\sqrt{3}}{2}+1", r"\sqrt{0.75}+x"),
    (r"x^2+2x+1", r"(x+1)^{2}"),
    (r"\{1,2\}", "2 and 3"),
    (r"[1,2)\cup(3,\infty)", r"1\le x<2"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&x\\3&4\end{bmatrix}"),
    (r"\sin(\pi/3)+\log_2 8", r"x=\cos{y}"),
]:
    compare(AnswerPair("math", answer, (gold,)))

outlive_thread()
