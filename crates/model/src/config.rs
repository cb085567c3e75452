//! `stillpoint.yaml`: the truth for an environment's parts. Parsed from text; reading the file is the caller's.
