"""The ``fwd2bot`` command. Everything heavy is imported inside the commands, so that ``--help`` starts in a blink."""
