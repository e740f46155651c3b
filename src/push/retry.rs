//! What an answer of a cache means for an upload, and how long to wait before the next try. Pure.

use std::time::Duration;

use crate::codec::http::date::{LAST_SECOND, format_imf_fixdate};
use crate::limits::{PUSH_BACKOFF_MAX, PUSH_BACKOFF_MIN, PUSH_RETRY_AFTER_MAX, PUSH_TRIES_MAX};

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is there, or was taken.
    Fine,
    /// It is not there.
    Absent,
    /// Not now; a later try may succeed.
    Again,
    /// No; the same request will be refused again.
    Refused,
}

/// The verdict on a status code.
///
/// 202 is no success: the cache has not got it yet. What Nix does not try again, is not tried again here (`filetransfer.cc`: 501, 505,
/// 511); 507 neither, because no room is made in seconds.
pub fn verdict(status: u16) -> Verdict {
    match status {
        200 | 201 | 204 => Verdict::Fine,
        404 | 410 => Verdict::Absent,
        501 | 505 | 507 | 511 => Verdict::Refused,
        408 | 429 | 500..=599 => Verdict::Again,
        _ => Verdict::Refused,
    }
}

/// How long to wait after the `tries`th try in vain, counted from 1. `None` when there is to be no other.
///
/// `chance` is any number: it decides where in the second half of the wait the next try is made, so that many who failed together do not
/// come back together. What the server wants (`retry_after`) is a lower bound.
pub fn wait_after(tries: u32, retry_after: Option<Duration>, chance: u32) -> Option<Duration> {
    (tries < PUSH_TRIES_MAX).then(|| {
        let wanted = retry_after.unwrap_or_default().min(PUSH_RETRY_AFTER_MAX);
        doubled(PUSH_BACKOFF_MIN, tries.saturating_sub(1), chance).max(wanted)
    })
}

/// `first`, doubled so many times, at most [`PUSH_BACKOFF_MAX`], and by chance up to a half less.
pub fn doubled(first: Duration, times: u32, chance: u32) -> Duration {
    let longest = first.saturating_mul(2_u32.saturating_pow(times)).min(PUSH_BACKOFF_MAX);
    longest / 2 + (longest / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

/// How long the field `Retry-After` says to wait (RFC 9110 section 10.2.3): seconds, or a date, which is taken if it is one of the next
/// [`PUSH_RETRY_AFTER_MAX`]. `now_s` is in seconds since 1970.
pub fn retry_after(value: &str, now_s: u64) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let last = now_s.saturating_add(PUSH_RETRY_AFTER_MAX.as_secs()).min(LAST_SECOND);
    let date = (now_s..=last).find(|&second| format_imf_fixdate(second) == value.trim().as_bytes())?;
    Some(Duration::from_secs(date - now_s))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_status_has_its_verdict() {
        for (status, expected) in [
            (200, Verdict::Fine),
            (201, Verdict::Fine),
            (202, Verdict::Refused),
            (204, Verdict::Fine),
            (301, Verdict::Refused),
            (400, Verdict::Refused),
            (401, Verdict::Refused),
            (403, Verdict::Refused),
            (404, Verdict::Absent),
            (405, Verdict::Refused),
            (408, Verdict::Again),
            (409, Verdict::Refused),
            (410, Verdict::Absent),
            (413, Verdict::Refused),
            (422, Verdict::Refused),
            (429, Verdict::Again),
            (500, Verdict::Again),
            (501, Verdict::Refused),
            (502, Verdict::Again),
            (503, Verdict::Again),
            (504, Verdict::Again),
            (507, Verdict::Refused),
            (599, Verdict::Again),
        ] {
            assert_eq!(verdict(status), expected, "{status}");
        }
    }

    #[test]
    fn waits_double_and_end() {
        let longest = |tries| wait_after(tries, None, u32::MAX);
        let millis = [500, 1000, 2000, 4000, 8000].map(|millis| Some(Duration::from_millis(millis)));
        assert_eq!([1, 2, 3, 4, 5].map(longest), millis);
        assert_eq!(longest(PUSH_TRIES_MAX), None);
        assert_eq!(wait_after(1, None, 0), Some(Duration::from_millis(250)));
    }

    #[test]
    fn the_server_is_left_alone_as_long_as_it_wants_within_reason() {
        let wanted = |seconds| wait_after(1, Some(Duration::from_secs(seconds)), 7).unwrap();
        assert_eq!(wanted(3), Duration::from_secs(3));
        assert_eq!(wanted(1_000_000), PUSH_RETRY_AFTER_MAX);
        assert!(
            wanted(0) >= Duration::from_millis(250),
            "a server that has nothing to say does not hurry us"
        );
        assert_eq!(wait_after(PUSH_TRIES_MAX, Some(Duration::from_secs(1)), 7), None);
    }

    #[test]
    fn both_forms_of_the_field_are_read() {
        let now_s = 784_111_777;
        for (value, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", None),
            ("Sun, 06 Nov 1995 08:49:37 GMT", None),
            ("-1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
        ] {
            assert_eq!(retry_after(value, now_s), seconds.map(Duration::from_secs), "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn a_wait_is_within_its_bounds(tries in 1..100_u32, seconds: Option<u64>, chance: u32) {
            let Some(wait) = wait_after(tries, seconds.map(Duration::from_secs), chance) else {
                prop_assert!(tries >= PUSH_TRIES_MAX);
                return Ok(());
            };
            prop_assert!(wait >= PUSH_BACKOFF_MIN / 2);
            prop_assert!(wait <= PUSH_BACKOFF_MAX.max(PUSH_RETRY_AFTER_MAX));
        }

        #[test]
        fn no_value_and_no_time_panics(value: String, now_s: u64, times: u32, chance: u32) {
            let _ = retry_after(&value, now_s);
            prop_assert!(doubled(PUSH_BACKOFF_MIN, times, chance) <= PUSH_BACKOFF_MAX);
        }
    }
}
