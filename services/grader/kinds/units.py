"""Units of the number kind: what each measures, and how many of the base unit it is. Exact, so lengths stay equal."""

from fractions import Fraction

# dimension: {unit: how many of the dimension's base unit}
_TABLE: dict[str, dict[str, str]] = {
    "length": {
        "m meter meters metre metres 米": "1",
        "km kilometer kilometers kilometre kilometres 千米 公里": "1000",
        "dm decimeter decimeters 分米": "0.1",
        "cm centimeter centimeters centimetre centimetres 厘米": "0.01",
        "mm millimeter millimeters millimetre millimetres 毫米": "0.001",
        "µm μm um micrometer micrometers 微米": "1e-6",
        "nm nanometer nanometers 纳米": "1e-9",
        "in inch inches": "0.0254",
        "ft foot feet": "0.3048",
        "yd yard yards": "0.9144",
        "mi mile miles": "1609.344",
    },
    "area": {
        "m^2 m² m2 sqm 平方米": "1",
        "km^2 km² km2 平方千米 平方公里": "1e6",
        "dm^2 dm² dm2 平方分米": "1e-2",
        "cm^2 cm² cm2 平方厘米": "1e-4",
        "mm^2 mm² mm2 平方毫米": "1e-6",
        "ha hectare hectares 公顷": "1e4",
    },
    "volume": {
        "m^3 m³ m3 立方米": "1",
        "dm^3 dm³ dm3 立方分米": "1e-3",
        "cm^3 cm³ cm3 cc 立方厘米": "1e-6",
        "mm^3 mm³ mm3 立方毫米": "1e-9",
        "l liter liters litre litres 升": "1e-3",
        "ml milliliter milliliters millilitre millilitres 毫升": "1e-6",
    },
    "mass": {
        "g gram grams 克": "1",
        "kg kilogram kilograms 千克 公斤": "1000",
        "mg milligram milligrams 毫克": "0.001",
        "t ton tons tonne tonnes 吨": "1e6",
        "lb lbs pound_mass": "453.59237",
        "oz ounce ounces": "28.349523125",
    },
    "time": {
        "s sec secs second seconds 秒": "1",
        "ms millisecond milliseconds 毫秒": "0.001",
        "min mins minute minutes 分钟 分": "60",
        "h hr hrs hour hours 小时 时": "3600",
        "day days d 天": "86400",
        "week weeks 周": "604800",
        "year years 年": "31557600",
    },
    "speed": {
        "m/s 米/秒": "1",
        "km/h kmh kph 千米/时 千米/小时 公里/小时": "5/18",
        "mph": "0.44704",
    },
    "angle": {"° degree degrees deg 度": "1"},
    "temperature in °C": {"°c ℃ celsius 摄氏度": "1"},
    "temperature in °F": {"°f ℉ fahrenheit": "1"},
    "dollars": {"$ usd dollar dollars 美元": "1", "¢ cent cents": "0.01"},
    "euros": {"€ eur euro euros 欧元": "1"},
    "pounds": {"£ gbp pound pounds 英镑": "1"},
    "yuan": {"¥ cny rmb yuan 元": "1", "角": "0.1"},
    "force": {"n newton newtons 牛": "1", "kn": "1000"},
    "energy": {"j joule joules 焦": "1", "kj": "1000"},
    "power": {"w watt watts 瓦": "1", "kw": "1000"},
    "voltage": {"v volt volts 伏": "1"},
    "current": {"a amp amps ampere amperes 安": "1", "ma": "0.001"},
    "resistance": {"ω ohm ohms 欧": "1"},
    "frequency": {"hz hertz": "1", "khz": "1000", "mhz": "1e6", "ghz": "1e9"},
    "pressure": {"pa pascal pascals 帕": "1", "kpa": "1000", "mpa": "1e6"},
    "counting": {"个 只 人 本 张 辆 块 条 棵 次 名 支 件 位": "1"},
}
UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(factor))
    for dimension, units in _TABLE.items()
    for names, factor in units.items()
    for name in names.split()
}
