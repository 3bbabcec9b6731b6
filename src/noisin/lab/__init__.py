"""The laboratory: trains, compares and reports. It uses the library, never the reverse."""


class LabError(Exception):
    """Bad input to the laboratory: the rule, then what was got. The command exits with 2."""
