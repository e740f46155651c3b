//! Times since 1970 as text: the `Date` field is an IMF-fixdate (RFC 9110 section 5.6.7), lines of the log have RFC 3339.

/// 9999-12-31 23:59:59, the last second with a year of four digits. Seconds since 1970.
pub const LAST_SECOND: u64 = 253_402_300_799;

const WEEKDAYS: &[u8; 21] = b"ThuFriSatSunMonTueWed";
const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
const SECONDS_PER_DAY: u64 = 86_400;
const DAYS_PER_ERA: u64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAY: u64 = 719_468;

/// `Sun, 06 Nov 1994 08:49:37 GMT` for a number of seconds since 1970; later than [`LAST_SECOND`] reads as that.
pub fn format_imf_fixdate(unix_seconds: u64) -> [u8; 29] {
    let unix_seconds = unix_seconds.min(LAST_SECOND);
    let days = unix_seconds / SECONDS_PER_DAY;
    let (year, month, day) = civil_from_days(days);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    text[..3].copy_from_slice(name_of(WEEKDAYS, days % 7));
    write_digits(&mut text[5..7], day);
    text[8..11].copy_from_slice(name_of(MONTHS, month - 1));
    write_digits(&mut text[12..16], year);
    write_clock(&mut text[17..25], unix_seconds);
    text
}

/// `1994-11-06T08:49:37.000000Z` for a number of seconds since 1970 and millionths of the next; later than [`LAST_SECOND`] reads as that.
pub fn format_rfc3339(unix_seconds: u64, microseconds: u32) -> [u8; 27] {
    let unix_seconds = unix_seconds.min(LAST_SECOND);
    let (year, month, day) = civil_from_days(unix_seconds / SECONDS_PER_DAY);
    let mut text = *b"1970-01-01T00:00:00.000000Z";
    write_digits(&mut text[..4], year);
    write_digits(&mut text[5..7], month);
    write_digits(&mut text[8..10], day);
    write_clock(&mut text[11..19], unix_seconds);
    write_digits(&mut text[20..26], microseconds.into());
    text
}

/// The hour, the minute and the second of a day, with something between them.
fn write_clock(text: &mut [u8], unix_seconds: u64) {
    let second_of_day = unix_seconds % SECONDS_PER_DAY;
    write_digits(&mut text[..2], second_of_day / 3600);
    write_digits(&mut text[3..5], second_of_day / 60 % 60);
    write_digits(&mut text[6..8], second_of_day % 60);
}

/// Year, month from 1, day from 1.
///
/// Years are counted from March: the leap day is then the last of its year, and the lengths of the months before it
/// repeat every five (153 days), so that both year and month are plain divisions.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let day = days + EPOCH_DAY;
    let (era, day_of_era) = (day / DAYS_PER_ERA, day % DAYS_PER_ERA);
    // Take out the leap days (after 4 years, 100 years, and the era's last) to be left with years of 365 days.
    let leap_days = day_of_era / 1460 + day_of_era / 146_096 - day_of_era / 36_524;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let is_next_year = month_from_march >= 10;
    let month = if is_next_year { month_from_march - 9 } else { month_from_march + 3 };
    (era * 400 + year_of_era + u64::from(is_next_year), month, day_of_month)
}

fn name_of(names: &[u8], index: u64) -> &[u8] {
    names.chunks_exact(3).nth(usize::try_from(index).unwrap_or(0)).unwrap_or(b"???")
}

fn write_digits(text: &mut [u8], mut value: u64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Counts years, months and days one by one.
    fn naive(unix_seconds: u64) -> String {
        let (mut days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
        let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][usize::try_from(days % 7).unwrap()];
        let mut year = 1970;
        let is_leap =
            |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        while days >= 365 + u64::from(is_leap(year)) {
            days -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let february = 28 + u64::from(is_leap(year));
        let months = [
            ("Jan", 31),
            ("Feb", february),
            ("Mar", 31),
            ("Apr", 30),
            ("May", 31),
            ("Jun", 30),
            ("Jul", 31),
            ("Aug", 31),
            ("Sep", 30),
            ("Oct", 31),
            ("Nov", 30),
            ("Dec", 31),
        ];
        for (month, len) in months {
            if days < len {
                let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
                let day = days + 1;
                return format!(
                    "{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT"
                );
            }
            days -= len;
        }
        unreachable!("a year has twelve months")
    }

    fn formatted(unix_seconds: u64) -> String {
        String::from_utf8(format_imf_fixdate(unix_seconds).to_vec()).unwrap()
    }

    #[test]
    fn known_dates() {
        assert_eq!(formatted(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT"); // the example of RFC 9110
        assert_eq!(formatted(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(formatted(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(formatted(LAST_SECOND), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(formatted(u64::MAX), formatted(LAST_SECOND));
    }

    #[test]
    fn every_day_of_five_centuries() {
        for day in 0..500 * 366 {
            let noon = day * SECONDS_PER_DAY + 43_200;
            assert_eq!(formatted(noon), naive(noon));
        }
    }

    fn in_log(unix_seconds: u64, microseconds: u32) -> String {
        String::from_utf8(format_rfc3339(unix_seconds, microseconds).to_vec()).unwrap()
    }

    #[test]
    fn known_times_of_the_log() {
        assert_eq!(in_log(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(in_log(951_782_400, 987_654), "2000-02-29T00:00:00.987654Z");
        assert!(in_log(u64::MAX, 1).starts_with("9999-12-31T23:59:59."));
    }

    proptest! {
        #[test]
        fn any_second(unix_seconds in 0..=LAST_SECOND) {
            let date = naive(unix_seconds);
            prop_assert_eq!(&formatted(unix_seconds), &date);
            let time = in_log(unix_seconds, 0);
            let (year, rest) = time.split_once('-').unwrap();
            let (month, rest) = rest.split_once('-').unwrap();
            let (day, clock) = rest.split_once('T').unwrap();
            let month = name_of(MONTHS, month.parse::<u64>().unwrap() - 1);
            let month = str::from_utf8(month).unwrap();
            let clock = clock.strip_suffix(".000000Z").unwrap();
            prop_assert_eq!(format!("{day} {month} {year} {clock} GMT"), &date["Thu, ".len()..]);
        }
    }
}
