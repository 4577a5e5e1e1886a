"""The names of LaTeX and of plain text, grouped by what they mean in an answer."""

from __future__ import annotations

import re

FUNCTIONS = frozenset(
    (
        "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh tanh coth sech "
        "csch arcsinh arccosh arctanh asinh acosh atanh log ln lg exp max min gcd lcm sgn sign sqrt cbrt abs floor "
        "ceil det tg ctg arctg re im arg log2 log10 binom factorial"
    ).split()
)
SAME_FUNCTION = {
    "tg": "tan", "ctg": "cot", "arctg": "arctan", "asin": "arcsin", "acos": "arccos", "atan": "arctan",
    "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh", "sign": "sgn", "arsinh": "arcsinh",
    "arcosh": "arccosh", "artanh": "arctanh",
}  # fmt: skip
INVERTIBLE = frozenset({"sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"})
"""Functions whose power -1 is the inverse function, not the reciprocal."""
GREEK = frozenset(
    (
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho "
        "sigma tau upsilon phi varphi chi top psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell "
        "hbar"
    ).split()
)
CONSTANTS = {
    "pi": "pi", "infty": "inf", "infin": "inf", "infinity": "inf", "inf": "inf", "oo": "inf", "e": "e", "i": "i",
}  # fmt: skip
FRACTIONS = frozenset({r"\frac", r"\dfrac", r"\tfrac", r"\cfrac", r"\nicefrac", r"\sfrac"})
BINOMIALS = frozenset({r"\binom", r"\dbinom", r"\tbinom"})
UNWORKED = frozenset(
    {r"\sum", r"\prod", r"\int", r"\iint", r"\oint", r"\lim", r"\limsup", r"\liminf", r"\sup", r"\inf"}
)
"""Operators that are kept as they are written; their value is not computed here."""
DECORATIONS = frozenset(
    (
        r"\vec \overrightarrow \overleftrightarrow \overline \bar \hat \widehat \tilde \dot \ddot \overset \underset "
        r"\widetilde \overarc \wideparen"
    ).split()
)
FIGURES = frozenset({r"\angle", r"\triangle", r"\measuredangle", r"\odot", r"\square", r"\parallelogram"})
TIMES = frozenset({"*", r"\cdot", r"\times", r"\ast", r"\bullet", r"\star"})
OVER = frozenset({"/", r"\div", r"\slash"})
RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", r"\le": "<=", r"\leq": "<=",
    r"\leqslant": "<=", r"\leqq": "<=", r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=", r"\geqq": ">=",
    r"\lt": "<", r"\gt": ">", r"\ne": "!=", r"\neq": "!=", r"\approx": "~", r"\simeq": "~", r"\cong": "~",
    r"\doteq": "~", r"\in": "in", r"\equiv": "==", r"\to": "->", r"\rightarrow": "->", r"\mapsto": "->",
    "->": "->", "is": "=", "are": "=", "equals": "=", "为": "=", "是": "=", "等于": "=", "属于": "in",
    r"\coloneqq": "=", "in": "in", r"\perp": "perp", r"\parallel": "parallel", r"\subset": "sub",
    r"\subseteq": "sub", r"\implies": "=>", r"\Rightarrow": "=>", r"\Longrightarrow": "=>", r"\iff": "=>",
    r"\sim": "~~", r"\propto": "prop",
}  # fmt: skip
JOINS = {
    "and": "and", "or": "or", r"\land": "and", r"\wedge": "and", r"\lor": "or", r"\vee": "or", "和": "and",
    "或": "or", "或者": "or", "与": "and", "及": "and", "以及": "and", "且": "and", "&": "and", "xor": "or",
    "并且": "and",
}  # fmt: skip
LEADING = frozenset(
    (
        "the answer answers is are final value values of equals equal to so thus therefore hence we get have there "
        "exactly approximately about roughly approx solution solutions total result either both which gives area "
        "length probability ratio sum minimum maximum number perimeter volume interval set point coordinates equation "
        "domain range all real roots root option choice must be 答案 答案是 答案为 最终答案 最终答案是 是 为 等于 约 "
        "约为 共 共有 即 所以 因此 故 解为 解得 结果 结果是 结果为 解 值为 得 解是 大约 一共 总共"
    ).split()
)
CONDITIONS = frozenset(("for where with when given such if whenever as 其中 当").split())
REFUSED = frozenset(
    (
        "not isn't n't neither nor least most more less fewer than unless except unknown maybe perhaps possibly "
        "probably different between wrong incorrect false fail fails failed cannot no none never instead without but "
        "plus minus half alternatively otherwise else either 不 非 至少 至多 不是 可能 也许 以上 以下"
    ).split()
)
"""Words that change the meaning of a number beside them, or take it back: the answer is then refused."""
PART_WORDS = frozenset(
    (
        "squared cubed halves thirds fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths point"
    ).split()
)
"""Words that change the number right before them, as in `3 halves`; after a unit they do not."""
CHANGED = re.compile("[不非错没或至未另加减乘除半第多负]")
"""Chinese characters that change the meaning of the number beside them."""
COPULAS = frozenset(("is are was has have equals needs gets takes 是 为 有").split())
"""Words after which a sentence states its number, as in "Tom has 5"."""
