"""The coefficients of all Runge–Kutta methods: a new one is an object here, whose name `METHODS` then knows."""

import math

from odenets.methods.explicit import ExplicitRungeKutta
from odenets.methods.implicit import ImplicitRungeKutta

EULER = ExplicitRungeKutta("euler", order=1, a=((),), b=(1.0,), c=(0.0,))  # equation (1) of the introduction

MIDPOINT = ExplicitRungeKutta(
    "midpoint",
    order=2,
    a=((), (1 / 2,)),
    b=(0.0, 1.0),
    c=(0.0, 1 / 2),
    b_error=(-1.0, 1.0, 0.0),  # against Euler
)

HEUN = ExplicitRungeKutta(
    "heun",
    order=2,
    a=((), (1.0,)),
    b=(1 / 2, 1 / 2),
    c=(0.0, 1.0),
    b_error=(-1 / 2, 1 / 2, 0.0),  # against Euler
)

# Kutta (1901), the classical method.
RK4 = ExplicitRungeKutta(
    "rk4",
    order=4,
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.0, 1 / 2, 1 / 2, 1.0),
)

# Bogacki and Shampine, "A 3(2) pair of Runge–Kutta formulas", Appl. Math. Letters 2 (1989).
BOSH3 = ExplicitRungeKutta(
    "bosh3",
    order=3,
    a=((), (1 / 2,), (0.0, 3 / 4)),
    b=(2 / 9, 1 / 3, 4 / 9),
    c=(0.0, 1 / 2, 3 / 4),
    b_error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)

# Dormand and Prince, "A family of embedded Runge–Kutta formulae", J. Comput. Appl. Math. 6 (1980);
# the continuous extension is the one of Hairer, Nørsett and Wanner's code DOPRI5 (II.6, after Shampine 1986).
DOPRI5 = ExplicitRungeKutta(
    "dopri5",
    order=5,
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    b_error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    dense_correction=(
        -12715105075 / 11282082432,
        0.0,
        87487479700 / 32700410799,
        -10690763975 / 1880347072,
        701980252875 / 199316789632,
        -1453857185 / 822651844,
        69997945 / 29380423,
    ),
)

# Tsitouras, "Runge–Kutta pairs of order 5(4) satisfying only the first column simplifying assumption",
# Comput. Math. Appl. 62 (2011); its continuous extension, of order 4, as the correction of the cubic.
TSIT5 = ExplicitRungeKutta(
    "tsit5",
    order=5,
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    ),
    b=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
    ),
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0),
    b_error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    dense_correction=(
        -1.0530884977290216,
        0.1017,
        2.490627285651253,
        -16.548102889244902,
        47.37952196281928,
        -34.87065786149661,
        2.5,
    ),
)

# Heun (1900), the method of order 3 that bears his name: Hairer, Nørsett and Wanner, II.1.
HEUN3 = ExplicitRungeKutta(
    "heun3", order=3, a=((), (1 / 3,), (0.0, 2 / 3)), b=(1 / 4, 0.0, 3 / 4), c=(0.0, 1 / 3, 2 / 3)
)

# Kutta (1901), the "3/8 rule": a smaller error than the classical method, for one more product a step.
RK4_38 = ExplicitRungeKutta(
    "rk4_38",
    order=4,
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    c=(0.0, 1 / 3, 2 / 3, 1.0),
)

# Fehlberg, "Low-order classical Runge–Kutta formulas with stepsize control", NASA TR R-315 (1969): RK1(2), of which
# the second order is carried on. Fehlberg's own estimate, (−1/512, 0, 1/512), is the error of a first order that was
# made 256 times better than Euler's: it says nothing of the second, and lets steps grow until that is unstable. So the
# estimate here is against Euler, as for "midpoint" and "heun"; the drop-in keeps Fehlberg's. For old code alone.
FEHLBERG2 = ExplicitRungeKutta(
    "fehlberg2",
    order=2,
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    c=(0.0, 1 / 2, 1.0),
    b_error=(1 / 512 - 1, 255 / 256, 1 / 512, 0.0),
)

# Prince and Dormand, "High order embedded Runge–Kutta formulae", J. Comput. Appl. Math. 7 (1981): RK8(7)13M.
# Its continuous extension is ours: the quartic whose middle satisfies all order conditions up to 5, of the solutions
# the one of least norm. So states between the steps are accurate to O(dt⁵) only; where that matters, take smaller
# steps there or a method of order 5.
DOPRI8 = ExplicitRungeKutta(
    "dopri8",
    order=8,
    a=(
        (),
        (1 / 18,),
        (1 / 48, 1 / 16),
        (1 / 32, 0.0, 3 / 32),
        (5 / 16, 0.0, -75 / 64, 75 / 64),
        (3 / 80, 0.0, 0.0, 3 / 16, 3 / 20),
        (
            29443841 / 614563906,
            0.0,
            0.0,
            77736538 / 692538347,
            -28693883 / 1125000000,
            23124283 / 1800000000,
        ),
        (
            16016141 / 946692911,
            0.0,
            0.0,
            61564180 / 158732637,
            22789713 / 633445777,
            545815736 / 2771057229,
            -180193667 / 1043307555,
        ),
        (
            39632708 / 573591083,
            0.0,
            0.0,
            -433636366 / 683701615,
            -421739975 / 2616292301,
            100302831 / 723423059,
            790204164 / 839813087,
            800635310 / 3783071287,
        ),
        (
            246121993 / 1340847787,
            0.0,
            0.0,
            -37695042795 / 15268766246,
            -309121744 / 1061227803,
            -12992083 / 490766935,
            6005943493 / 2108947869,
            393006217 / 1396673457,
            123872331 / 1001029789,
        ),
        (
            -1028468189 / 846180014,
            0.0,
            0.0,
            8478235783 / 508512852,
            1311729495 / 1432422823,
            -10304129995 / 1701304382,
            -48777925059 / 3047939560,
            15336726248 / 1032824649,
            -45442868181 / 3398467696,
            3065993473 / 597172653,
        ),
        (
            185892177 / 718116043,
            0.0,
            0.0,
            -3185094517 / 667107341,
            -477755414 / 1098053517,
            -703635378 / 230739211,
            5731566787 / 1027545527,
            5232866602 / 850066563,
            -4093664535 / 808688257,
            3962137247 / 1805957418,
            65686358 / 487910083,
        ),
        (
            403863854 / 491063109,
            0.0,
            0.0,
            -5068492393 / 434740067,
            -411421997 / 543043805,
            652783627 / 914296604,
            11173962825 / 925320556,
            -13158990841 / 6184727034,
            3936647629 / 1978049680,
            -160528059 / 685178525,
            248638103 / 1413531060,
            0.0,
        ),
    ),
    b=(
        14005451 / 335480064,
        0.0,
        0.0,
        0.0,
        0.0,
        -59238493 / 1068277825,
        181606767 / 758867731,
        561292985 / 797845732,
        -1041891430 / 1371343529,
        760417239 / 1151165299,
        118820643 / 751138087,
        -528747749 / 2220607170,
        1 / 4,
    ),
    c=(
        0.0,
        1 / 18,
        1 / 12,
        1 / 8,
        5 / 16,
        3 / 8,
        59 / 400,
        93 / 200,
        5490023248 / 9719169821,
        13 / 20,
        1201146811 / 1299019798,
        1.0,
        1.0,
    ),
    b_error=(
        14005451 / 335480064 - 13451932 / 455176623,
        0.0,
        0.0,
        0.0,
        0.0,
        -59238493 / 1068277825 + 808719846 / 976000145,
        181606767 / 758867731 - 1757004468 / 5645159321,
        561292985 / 797845732 - 656045339 / 265891186,
        -1041891430 / 1371343529 + 3867574721 / 1518517206,
        760417239 / 1151165299 - 465885868 / 322736535,
        118820643 / 751138087 - 53011238 / 667516719,
        -528747749 / 2220607170 - 2 / 45,
        1 / 4,
        0.0,
    ),
    dense_correction=(
        -3.219047511094505,
        0.0,
        0.0,
        0.0,
        0.0,
        0.9501573883091439,
        5.0063666199505255,
        -1.032054424734339,
        -1.8601564794342436,
        -1.2662743747729173,
        2.1506117996230847,
        -0.24320100594887717,
        -0.2432010059489722,
        -0.24320100594889693,
    ),
    dense_correction_slope=(
        3.281859865172545,
        0.0,
        0.0,
        0.0,
        0.0,
        1.4328744707301324,
        -6.873398050630754,
        3.337074895793524,
        2.146969295812549,
        -1.350222829556409,
        -7.496472803076702,
        1.8404383852515214,
        1.8404383852518704,
        1.84043838525173,
    ),
)

EXPLICIT = (EULER, MIDPOINT, HEUN, HEUN3, RK4, RK4_38, FEHLBERG2, BOSH3, DOPRI5, TSIT5, DOPRI8)

# Backward Euler, and the two methods of order 2 that keep what a linear f keeps. The trapezoidal rule damps nothing
# that is very stiff, it lets it ring.
IMPLICIT_EULER = ImplicitRungeKutta("implicit_euler", order=1, a=((1.0,),), b=(1.0,), c=(1.0,))
IMPLICIT_MIDPOINT = ImplicitRungeKutta("implicit_midpoint", order=2, a=((1 / 2,),), b=(1.0,), c=(1 / 2,))
TRAPEZOID = ImplicitRungeKutta("trapezoid", order=2, a=((0.0, 0.0), (1 / 2, 1 / 2)), b=(1 / 2, 1 / 2), c=(0.0, 1.0))

# Gauss methods: Hairer and Wanner, IV.5.
_R3, _R15 = math.sqrt(3), math.sqrt(15)
GL4 = ImplicitRungeKutta(
    "gl4",
    order=4,
    a=((1 / 4, 1 / 4 - _R3 / 6), (1 / 4 + _R3 / 6, 1 / 4)),
    b=(1 / 2, 1 / 2),
    c=(1 / 2 - _R3 / 6, 1 / 2 + _R3 / 6),
)
GL6 = ImplicitRungeKutta(
    "gl6",
    order=6,
    a=(
        (5 / 36, 2 / 9 - _R15 / 15, 5 / 36 - _R15 / 30),
        (5 / 36 + _R15 / 24, 2 / 9, 5 / 36 - _R15 / 24),
        (5 / 36 + _R15 / 30, 2 / 9 + _R15 / 15, 5 / 36),
    ),
    b=(5 / 18, 4 / 9, 5 / 18),
    c=(1 / 2 - _R15 / 10, 1 / 2, 1 / 2 + _R15 / 10),
)

# Radau IIA: Hairer and Wanner, IV.5. L-stable; that of order 5 is the one to try first.
_R6 = math.sqrt(6)
RADAU3 = ImplicitRungeKutta(
    "radauIIA3", order=3, a=((5 / 12, -1 / 12), (3 / 4, 1 / 4)), b=(3 / 4, 1 / 4), c=(1 / 3, 1.0)
)
RADAU5 = ImplicitRungeKutta(
    "radauIIA5",
    order=5,
    a=(
        ((88 - 7 * _R6) / 360, (296 - 169 * _R6) / 1800, (-2 + 3 * _R6) / 225),
        ((296 + 169 * _R6) / 1800, (88 + 7 * _R6) / 360, (-2 - 3 * _R6) / 225),
        ((16 - _R6) / 36, (16 + _R6) / 36, 1 / 9),
    ),
    b=((16 - _R6) / 36, (16 + _R6) / 36, 1 / 9),
    c=((4 - _R6) / 10, (4 + _R6) / 10, 1.0),
)

# Alexander, "Diagonally implicit Runge–Kutta methods for stiff O.D.E.'s", SIAM J. Numer. Anal. 14 (1977). L-stable.
_GAMMA = 1 - math.sqrt(2) / 2
SDIRK2 = ImplicitRungeKutta(
    "sdirk2", order=2, a=((_GAMMA, 0.0), (1 - _GAMMA, _GAMMA)), b=(1 - _GAMMA, _GAMMA), c=(_GAMMA, 1.0)
)

# A step of the trapezoidal rule, then one of BDF2, with an error estimate: Hosea and Shampine, "Analysis and
# implementation of TR-BDF2", Appl. Numer. Math. 20 (1996). L-stable.
_BETA = math.sqrt(2) / 4
TRBDF2 = ImplicitRungeKutta(
    "trbdf2",
    order=2,
    a=((0.0, 0.0, 0.0), (_GAMMA, _GAMMA, 0.0), (_BETA, _BETA, _GAMMA)),
    b=(_BETA, _BETA, _GAMMA),
    c=(0.0, 2 * _GAMMA, 1.0),
    b_error=(_BETA - (1 - _BETA) / 3, _BETA - (3 * _BETA + 1) / 3, _GAMMA - _GAMMA / 3, 0.0),  # against order 3
)

IMPLICIT = (IMPLICIT_EULER, IMPLICIT_MIDPOINT, TRAPEZOID, SDIRK2, TRBDF2, RADAU3, GL4, RADAU5, GL6)
