//! Token selection for KV-cache compression: scores and budgets in, positions out.
