//! Times as Go prints them: RFC 3339, the fraction without trailing zeros. Always UTC.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt::Write;

/// The text of a time. Years that the format cannot say become the nearest that it can.
pub(crate) fn encode(time: Timestamp) -> String {
    let time = TimeZone::UTC.to_datetime(time);
    if time.year() < 0 {
        return "0000-01-01T00:00:00Z".to_owned();
    }
    let mut text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    );
    if time.subsec_nanosecond() != 0 {
        let _ = write!(text, ".{:09}", time.subsec_nanosecond());
        text.truncate(text.trim_end_matches('0').len());
    }
    text.push('Z');
    text
}

/// A time from the file system; out of range it becomes the nearest that can be said.
pub(crate) fn from_file_system(seconds: i64, nanoseconds: i64) -> Timestamp {
    let nearest = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::new(seconds, i32::try_from(nanoseconds).unwrap_or(0)).unwrap_or(nearest)
}

/// For `#[serde(with)]`: any offset is read, UTC is written.
pub(crate) mod text {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    pub(crate) fn serialize<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::encode(*time))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        Timestamp::deserialize(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_as_stock_clients_print_them() {
        for (seconds, nanoseconds, text) in [
            (978_307_200, 0, "2001-01-01T00:00:00Z"),
            (978_307_200, 100_000_000, "2001-01-01T00:00:00.1Z"),
            (978_307_200, 152_492_890, "2001-01-01T00:00:00.15249289Z"),
            (978_307_200, 1, "2001-01-01T00:00:00.000000001Z"),
            (-157_766_400, 100_000_000, "1965-01-01T00:00:00.1Z"),
        ] {
            let time = from_file_system(seconds, nanoseconds);
            assert_eq!(encode(time), text);
            assert_eq!(text.parse::<Timestamp>().unwrap(), time);
        }
        assert_eq!(encode(from_file_system(i64::MIN, 0)), "0000-01-01T00:00:00Z");
        assert!(encode(from_file_system(i64::MAX, 0)).starts_with("9999-12-30"));
        assert!("2015-01-02T18:10:50.895208559+01:00".parse::<Timestamp>().is_ok());
    }
}
