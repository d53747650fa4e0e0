"""One generation engine on token ids: prefill, fork, step. See `engine.interface` for the contract."""
