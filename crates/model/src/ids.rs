//! Typed ids and names. Parsing is the only way in, so a value of these types is always valid.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What was wrong with a name or an id that was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{given}` is not valid: {rule}")]
pub struct InvalidName {
    what: &'static str,
    given: String,
    rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The text of it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(given: &str) -> Result<Self, InvalidName> {
                let valid: fn(&str) -> bool = $valid;
                if valid(given) {
                    Ok(Self(given.to_owned()))
                } else {
                    Err(InvalidName { what: $what, given: given.to_owned(), rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(given: String) -> Result<Self, InvalidName> {
                given.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A project's id: `[a-z0-9]+`, at most 64 characters.
    ProjectId,
    "project id",
    "lower-case letters and digits only, 1 to 64 of them",
    |s| (1..=64).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
);

name!(
    /// An environment's name, often a Git branch: letters, digits, `.`, `_`, `-`, `/`.
    EnvironmentName,
    "environment name",
    "letters, digits and . _ - / only, 1 to 100 of them, beginning with a letter or digit, \
     without `..`",
    |s| (1..=100).contains(&s.len())
        && s.as_bytes()[0].is_ascii_alphanumeric()
        && !s.contains("..")
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))
);

name!(
    /// The name of a part of an environment: a service, mount, worker, cron or gateway. It is a
    /// directory's name in a backup's tree.
    PartName,
    "name",
    "letters, digits, `_` and `-` only, 1 to 64 of them, beginning with a letter or digit",
    is_part_name
);

name!(
    /// A region's name: a named set of locations.
    RegionName,
    "region name",
    "letters, digits, `_` and `-` only, 1 to 64 of them, beginning with a letter or digit",
    is_part_name
);

name!(
    /// A location's name: one data centre's store.
    LocationName,
    "location name",
    "letters, digits, `_` and `-` only, 1 to 64 of them, beginning with a letter or digit",
    is_part_name
);

fn is_part_name(s: &str) -> bool {
    (1..=64).contains(&s.len())
        && s.as_bytes()[0].is_ascii_alphanumeric()
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// The alphabet of RFC 4648 base 32, in lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

name!(
    /// A backup's id: 26 characters of lower-case base 32 (128 random bits).
    BackupId,
    "backup id",
    "26 characters of a to z and 2 to 7",
    |s| s.len() == 26 && s.bytes().all(|b| BASE32.contains(&b))
);

impl BackupId {
    /// A new id from the operating system's random source.
    ///
    /// # Panics
    /// When the operating system has no randomness to give: nothing safe can be done then.
    pub fn random() -> Self {
        Self(random_base32(26))
    }
}

name!(
    /// An activity's id: 13 characters of lower-case base 32 (65 random bits).
    ActivityId,
    "activity id",
    "13 characters of a to z and 2 to 7",
    |s| s.len() == 13 && s.bytes().all(|b| BASE32.contains(&b))
);

impl ActivityId {
    /// A new id from the operating system's random source.
    ///
    /// # Panics
    /// When the operating system has no randomness to give: nothing safe can be done then.
    pub fn random() -> Self {
        Self(random_base32(13))
    }
}

/// `length` random characters of lower-case base 32.
fn random_base32(length: usize) -> String {
    let mut bytes = vec![0_u8; length];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes.iter().map(|b| char::from(BASE32[usize::from(b & 31)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_backup_ids_are_valid_and_differ() {
        let a = BackupId::random();
        assert_eq!(a, a.as_str().parse().unwrap());
        assert_ne!(a, BackupId::random());
    }

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "a b", "-x", "a\0"] {
            assert!(bad.parse::<PartName>().is_err(), "{bad:?}");
        }
        for bad in ["", "../x", "a/../b", "/a"] {
            assert!(bad.parse::<EnvironmentName>().is_err(), "{bad:?}");
        }
        assert!("feature/new-cart".parse::<EnvironmentName>().is_ok());
    }

    #[test]
    fn an_invalid_project_id_says_what_would_be_right() {
        let error = "my-shop".parse::<ProjectId>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "project id `my-shop` is not valid: lower-case letters and digits only, 1 to 64 of them"
        );
    }
}
