//! Dates as chat templates ask for them, in UTC.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment in UTC, by the Gregorian calendar.
struct Moment {
    year: u64,
    /// 0 to 11.
    month_idx: usize,
    /// 1 to 31.
    day: u64,
    /// 1 to 366.
    day_of_year: u64,
    /// 0 (Sunday) to 6.
    weekday_idx: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

/// `seconds` since 1970 in the form of a C `strftime` format with the English names.
///
/// # Errors
///
/// The directive, where it is none of `%Y %y %m %B %b %d %e %j %A %a %H %I %M %S %p %F %T %%` or,
/// without the leading zero, `%-m %-d %-H %-I %-M %-S %-j`.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let moment = Moment::new(seconds);
    let mut out = String::with_capacity(format.len() + 16);
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next().map(String::from).unwrap_or_default();
        if directive == "-" {
            directive.extend(chars.next());
        }
        out.push_str(&moment.format(&directive).ok_or(directive)?);
    }
    Ok(out)
}

impl Moment {
    fn new(seconds: u64) -> Self {
        let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
        let is_leap = |year: u64| {
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
        };
        // The calendar repeats every 400 years, which have 146,097 days.
        let mut year = 1970 + days / 146_097 * 400;
        let mut day_of_year = days % 146_097;
        loop {
            let year_days = if is_leap(year) { 366 } else { 365 };
            if day_of_year < year_days {
                break;
            }
            day_of_year -= year_days;
            year += 1;
        }
        let february = if is_leap(year) { 29 } else { 28 };
        let month_days = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month_idx = 0;
        let mut day = day_of_year;
        while day >= month_days[month_idx] {
            day -= month_days[month_idx];
            month_idx += 1;
        }
        Self {
            year,
            month_idx,
            day: day + 1,
            day_of_year: day_of_year + 1,
            // The first of January 1970 was a Thursday.
            weekday_idx: ((days + 4) % 7) as usize,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    fn format(&self, directive: &str) -> Option<String> {
        let month = self.month_idx + 1;
        let half_hour = (self.hour + 11) % 12 + 1;
        let (month_name, weekday) = (MONTHS[self.month_idx], WEEKDAYS[self.weekday_idx]);
        let (hour, minute, second) = (self.hour, self.minute, self.second);
        Some(match directive {
            "Y" => self.year.to_string(),
            "y" => format!("{:02}", self.year % 100),
            "m" => format!("{month:02}"),
            "-m" => month.to_string(),
            "B" => month_name.to_owned(),
            "b" => month_name[..3].to_owned(),
            "d" => format!("{:02}", self.day),
            "-d" => self.day.to_string(),
            "e" => format!("{:2}", self.day),
            "j" => format!("{:03}", self.day_of_year),
            "-j" => self.day_of_year.to_string(),
            "A" => weekday.to_owned(),
            "a" => weekday[..3].to_owned(),
            "H" => format!("{hour:02}"),
            "-H" => hour.to_string(),
            "I" => format!("{half_hour:02}"),
            "-I" => half_hour.to_string(),
            "M" => format!("{minute:02}"),
            "-M" => minute.to_string(),
            "S" => format!("{second:02}"),
            "-S" => second.to_string(),
            "p" => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            "F" => format!("{}-{month:02}-{:02}", self.year, self.day),
            "T" => format!("{hour:02}:{minute:02}:{second:02}"),
            "%" => "%".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_as_python_writes_them() {
        // datetime.fromtimestamp(seconds, UTC).strftime(format)
        let format = "%a %A %d %-d %e %b %B %Y %y %m %-m %j %H:%M:%S %I %p %F %T %%";
        let cases = [
            (
                0,
                "Thu Thursday 01 1  1 Jan January 1970 70 01 1 001 00:00:00 12 AM 1970-01-01 00:00:00 %",
            ),
            (
                951_827_696,
                "Tue Tuesday 29 29 29 Feb February 2000 00 02 2 060 12:34:56 12 PM 2000-02-29 12:34:56 %",
            ),
            (
                1_735_689_599,
                "Tue Tuesday 31 31 31 Dec December 2024 24 12 12 366 23:59:59 11 PM 2024-12-31 23:59:59 %",
            ),
            (
                4_107_542_400,
                "Mon Monday 01 1  1 Mar March 2100 00 03 3 060 00:00:00 12 AM 2100-03-01 00:00:00 %",
            ),
        ];
        for (seconds, expected) in cases {
            assert_eq!(strftime(format, seconds).unwrap(), expected);
        }
    }

    #[test]
    fn unknown_directives_are_named() {
        for (format, directive) in [("%Q", "Q"), ("%-Q", "-Q"), ("%", ""), ("a%-", "-")] {
            assert_eq!(strftime(format, 0).unwrap_err(), directive);
        }
        assert!(strftime("%Y", u64::MAX).is_ok());
    }
}
