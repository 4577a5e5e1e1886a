"""Answers that try to cost time or memory, or to be run: (name, gold, answer).

Only where the gold is `1` may an answer be right.
"""

from __future__ import annotations


def nested(opening: str, inside: str, closing: str, depth: int) -> str:
    """`inside`, so many brackets deep."""
    return opening * depth + inside + closing * depth


def boxed(gold: str, **answers: str) -> list[tuple[str, str, str]]:
    """One answer a keyword, in a box, named by the keyword."""
    return [(name.replace("_", " "), gold, f"\\boxed{{{answer}}}") for name, answer in answers.items()]


def depth() -> list[tuple[str, str, str]]:
    """Deeply nested ones."""
    return boxed(
        "1",
        brackets=nested("(", "1", ")", 5_000),
        braces=nested("{", "1", "}", 20_000),
        left_right=nested(r"\left(", "1", r"\right)", 800),
        fractions=nested(r"\frac{1}{1+", "1", "}", 400),
        roots=nested(r"\sqrt{", "1", "}", 900),
        powers=nested("2^{", "1", "}", 900),
        indices=nested("x_{", "1", "}", 900),
        signs="-" * 40_000 + "1",
        bars=nested("|", "-1", "|", 1_500),
        functions=nested(r"\sin(", "x", ")", 300),
        sets=nested(r"\{", "1", r"\}", 900),
        boxes=nested(r"\boxed{", "1", "}", 2_000),
        texts=nested(r"\text{", "1", "}", 2_000),
        factorials="3" + "!" * 400,
        primes="f" + "'" * 5_000,
        open_brackets="(" * 30_000,
    )


def length() -> list[tuple[str, str, str]]:
    """Long ones, for the reader of formulas and for the search for the answer."""
    answers = boxed(
        "17",
        digits="9" * 100_000,
        ones="+".join(["1"] * 30_000),
        letters="x" * 50_000,
        items=",".join(map(str, range(20_000))),
        commas="," * 100_000,
        spaces="1" + " " * 200_000 + "1",
        thousands="1" + ",000" * 20_000,
        matrix=r"\begin{pmatrix}" + r"\\".join(["&".join(["1"] * 100)] * 100) + r"\end{pmatrix}",
        union=r"\cup ".join(f"({n},{n + 1})" for n in range(3_000)),
        chain="<".join(map(str, range(5_000))),
        fractions_open=r"\frac" * 10_000,
        dollars="$" * 20_000,
        backslashes="\\ " * 20_000,
        decimals="0." + "0" * 80_000 + "1",
        percents="5" + r"\%" * 5_000,
        words="yes " * 20_000,
    )
    return [
        *answers,
        ("many boxes", "17", r"\boxed{2}" * 5_000),
        ("many boxes apart", "17", r"\boxed{2} and then " * 5_000),
        ("many phrases", "17", "the final answer is " * 10_000 + "2"),
        ("many open boxes", "17", r"\boxed{" * 20_000),
        ("many tags", "17", "<answer>" * 20_000),
        ("a wall of text", "17", "so the answer is not known " * 20_000),
        ("blank lines", "17", "\n" * 200_000 + r"\boxed{2}"),
    ]


def magnitude() -> list[tuple[str, str, str]]:
    """Short ones that stand for numbers too large, too small or too exact to be worked out."""
    tower = "9^{9^{9^{9}}}"
    return boxed(
        "7",
        tower=tower,
        tower_in_a_fraction=f"\\frac{{1}}{{{tower}}}",
        two_towers=f"{tower}-{tower}+7",
        power="3^{100000000}",
        small_power="2^{-10^{12}}",
        almost_one="1.0000001^{1000000000000}",
        exponent="1e999999999",
        small_exponent="1e-999999999",
        factorial="(10^{10})!",
        large_factorial="99999999!",
        factorial_twice="(10!)!",
        binomial=r"\binom{1000000000}{500000000}",
        root=r"\sqrt[1000000000]{2}",
        logarithm=r"\log(10^{10^{9}})",
        exponentials=r"\exp(\exp(\exp(\exp(10))))",
        far_sine=r"\sin(10^{5000})",
        far_tangent=r"\tan(10^{50})",
        gamma=r"\Gamma(1000000000)",
        remainder=r"7^{10^{18}} \bmod 10",
        base="z" * 20_000 + "_{36}",
        repeating=r"0.\overline{" + "142857" * 5_000 + "}",
        percent_tower=f"{tower}\\%",
        common_divisor=r"\frac{7^{300000}+1}{3^{600000}+2}",
    )


def symbolic() -> list[tuple[str, str, str]]:
    """Formulas whose simplification does not end, or not soon."""
    determinant = r"\det\begin{pmatrix}" + r"\\".join("&".join(f"x_{{{i}{j}}}" for j in range(9)) for i in range(9))
    return (
        boxed(
            "x+1",
            product=r"\prod_{k=1}^{10000000}k",
            harmonic=r"\sum_{k=1}^{1000000000}\frac{1}{k}",
            trigonometric=r"(\sin x+\cos x)^{60}",
            trinomial="(x+y+z)^{200}",
            binomial_power="(1+x)^{100000}",
            difference_of_powers="(1+x)^{3000}-(1-x)^{3000}",
            integral=r"\int_0^1 x^{x^{x}}dx",
            integral_of_tangents=r"\int \tan(\sin(\tan(x^3)))dx",
            limit=r"\lim_{n\to\infty}\left(1+\frac{1}{n}\right)^{n^2}",
            determinant=determinant + r"\end{pmatrix}",
            many_letters="".join(f"(a_{{{n}}}+b_{{{n}}})" for n in range(60)),
            rational="+".join(f"\\frac{{1}}{{x^{{{n}}}+{n}}}" for n in range(1, 40)),
            sums_of_sums=r"\sum_{i=1}^{1000}\sum_{j=1}^{1000}\sum_{k=1}^{1000} ijk",
            logarithms=nested(r"\ln(", "x^2+1", ")", 25),
            absolute="+".join(f"|x-{n}|" for n in range(60)),
            floors=r"\lfloor " * 30 + "x" + r"\rfloor " * 30,
        )
        + boxed(
            r"\sqrt{2}",
            radicals="+".join(f"\\sqrt{{{n}}}" for n in range(2, 90)),
            nested_radicals="".join(f"\\sqrt{{{n}+" for n in range(2, 60)) + "1" + "}" * 58,
            cube_roots=r"\sqrt[3]{2+\sqrt{5}}+\sqrt[3]{2-\sqrt{5}}+\sqrt[5]{41+29\sqrt{2}}",
        )
        + boxed(
            "y=2x+3",
            equation=r"x^{1000}+y^{1000}=1",
            transcendental=r"\sin(xy)+e^{xy}=y^x+x^y",
        )
        + boxed(
            r"\{1,2\}",
            set_of_roots=r"\{x: x^{50}-1=0\}",
            plus_minus=r"\pm".join(["1"] * 40),
        )
        + boxed("x>1", inequality=r"\frac{(x-1)^{99}}{(x+1)^{98}}>\sin(x^{50})")
    )


def executable(canary: str) -> list[tuple[str, str, str]]:
    """Texts that would make the file `canary` if anything evaluated them."""
    call = f"__import__('os').system('touch {canary}')"
    return boxed(
        "x+1",
        call=call,
        call_in_braces=f"\\text{{{call}}}",
        call_after_pi=f"\\pi;{call}",
        call_in_matrix=f"\\begin{{pmatrix}} {call} \\\\ 1 \\end{{pmatrix}}",
        call_in_function=f"x+exec(\"open('{canary}','w')\")",
        call_in_lambda=f"(lambda: open('{canary}', 'w'))()",
    )


def odd() -> list[tuple[str, str, str]]:
    """Characters that are seldom in formulas."""
    return boxed(
        "1",
        null="1\x00",
        surrogate="1\ud800",
        bidirectional="\u202e1\u202c",
        zero_width="1" + "\u200b" * 50_000,
        combining="1" + "\u0301" * 50_000,
        other_digits="１２３" * 5_000,
        superscripts="2" + "⁹" * 400,
        vulgar="½" * 5_000,
        emoji="🎲" * 5_000,
    )


def payloads(canary: str) -> list[tuple[str, str, str]]:
    """All of them."""
    return [*depth(), *length(), *magnitude(), *symbolic(), *executable(canary), *odd()]
