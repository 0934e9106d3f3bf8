"""What a person can put right when an evaluation cannot be made; the message says how."""


class EvaluationError(ValueError):
    """One clear line: what happened and what to do."""
