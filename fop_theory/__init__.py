"""Mathematics of First-Order Preconditioning: derivations, checks, counterexamples and the ledger."""
