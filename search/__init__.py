"""Test-time compute: search methods over a generation engine and a verifier, and the stages that measure them."""
