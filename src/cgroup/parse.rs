//! Model layer: the kernel's number syntax.

use crate::bitmap::strip;
use crate::error::{Error, Result};

/// The digits of `text` in the base that its start tells (`_parse_integer_fixup_radix`), and the base.
fn radix(text: &[u8]) -> (&[u8], u64) {
    match text {
        [b'0', b'x' | b'X', digit, ..] if digit.is_ascii_hexdigit() => (&text[2..], 16),
        [b'0', ..] => (text, 8),
        _ => (text, 10),
    }
}

/// `_kstrtoull` with base 0: digits, then one newline at the most.
fn magnitude(text: &[u8]) -> Result<u64> {
    let (text, base) = radix(text);
    let digit = |c: &u8| (*c as char).to_digit(base as u32).map(u64::from);
    let digits = text.iter().map_while(digit).count();
    let value = text[..digits].iter().filter_map(digit).try_fold(0u64, |n, d| n.checked_mul(base)?.checked_add(d));
    let value = value.ok_or(Error::Range)?;
    match (digits, &text[digits..]) {
        (1.., [] | [b'\n']) => Ok(value),
        _ => Err(Error::Invalid),
    }
}

/// `kstrtoull(text, 0)`.
///
/// # Errors
/// EINVAL for what is not a number, ERANGE for 2^64 and more.
pub fn u64(text: &[u8]) -> Result<u64> {
    magnitude(text.strip_prefix(b"+").unwrap_or(text))
}

/// `kstrtoll(text, 0)`.
///
/// # Errors
/// EINVAL for what is not a number, ERANGE for what does not fit.
pub fn s64(text: &[u8]) -> Result<i64> {
    match text.strip_prefix(b"-") {
        Some(rest) => 0i64.checked_sub_unsigned(magnitude(rest)?).ok_or(Error::Range),
        None => u64(text)?.try_into().map_err(|_| Error::Range),
    }
}

/// The number written to a membership file (`cgroup_procs_write_start`).
///
/// # Errors
/// EINVAL for everything but a non-negative int.
pub fn pid(text: &[u8]) -> Result<i32> {
    let nr = s64(strip(text)).map_err(|_| Error::Invalid)?;
    i32::try_from(nr).ok().filter(|nr| *nr >= 0).ok_or(Error::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsigned_numbers() {
        for (text, want) in [("1", 1), ("+1\n", 1), ("0x1F", 31), ("017", 15), ("0", 0), ("18446744073709551615", u64::MAX), ("00", 0)] {
            assert_eq!(u64(text.as_bytes()), Ok(want), "{text:?}");
        }
        for text in ["", "\n", "-1", "-0", "1x", "08", "0x", "true", " 1", "1 ", "1\n\n", "+", "++1", "0xg"] {
            assert_eq!(u64(text.as_bytes()), Err(Error::Invalid), "{text:?}");
        }
        assert_eq!(u64(b"18446744073709551616"), Err(Error::Range));
        assert_eq!(u64(b"99999999999999999999x"), Err(Error::Range));
    }

    #[test]
    fn signed_numbers() {
        for (text, want) in
            [("-1", -1), ("-0", 0), ("+1", 1), ("-0x10\n", -16), ("-9223372036854775808", i64::MIN), ("9223372036854775807", i64::MAX)]
        {
            assert_eq!(s64(text.as_bytes()), Ok(want), "{text:?}");
        }
        assert_eq!(s64(b"-+1"), Err(Error::Invalid));
        assert_eq!(s64(b"9223372036854775808"), Err(Error::Range));
        assert_eq!(s64(b"-9223372036854775809"), Err(Error::Range));
    }

    #[test]
    fn pids() {
        for (text, want) in [("123", 123), (" +123\n", 123), ("0x7b", 123), ("0173", 123), ("-0", 0), ("\u{a0}", -1)] {
            assert_eq!(pid(text.as_bytes()), if want < 0 { Err(Error::Invalid) } else { Ok(want) }, "{text:?}");
        }
        assert_eq!(pid(b"\xa0 7\x0b"), Ok(7));
        for text in ["", "-1", "1 2", "2147483648", "99999999999999999999", "1x"] {
            assert_eq!(pid(text.as_bytes()), Err(Error::Invalid), "{text:?}");
        }
    }
}
