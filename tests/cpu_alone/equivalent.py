EQUIVALENT: list[tuple[str, str]] = []
