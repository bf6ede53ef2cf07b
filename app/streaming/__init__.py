"""Windows onto runs: how events reach a client that follows one."""
