//! Base layer: a set of small numbers of any size, as cpumask_t and nodemask_t are, with the kernel's list syntax.

use crate::error::{Error, Result};
use smallvec::SmallVec;
use std::fmt;

const BITS: usize = u64::BITS as usize;

/// A set of CPU or memory node ids. Trailing zero words are never stored, so equality is set equality.
/// Up to 128 ids live without an allocation.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Bitmap {
    words: SmallVec<[u64; 2]>,
}

impl Bitmap {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The set of all ids below `n`.
    pub fn first(n: usize) -> Self {
        (0..n).collect()
    }

    /// A set from words as sched_setaffinity(2) takes them: bit 0 of word 0 is id 0.
    pub fn from_words(words: &[u64]) -> Self {
        Self { words: SmallVec::from_slice(words) }.trimmed()
    }

    /// The words, least significant first, without trailing zeros.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    fn trimmed(mut self) -> Self {
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
        self
    }

    /// Adds `id`.
    pub fn insert(&mut self, id: usize) {
        let word = id / BITS;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (id % BITS);
    }

    /// Whether `id` is in the set.
    pub fn contains(&self, id: usize) -> bool {
        self.words.get(id / BITS).is_some_and(|w| w >> (id % BITS) & 1 == 1)
    }

    /// Whether the set has no element.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether every element is in `other` too.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.words.len() <= other.words.len() && self.words.iter().zip(&other.words).all(|(a, b)| a & !b == 0)
    }

    /// Whether the sets have a common element.
    pub fn intersects(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    /// The common elements.
    pub fn and(&self, other: &Self) -> Self {
        Self { words: self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect() }.trimmed()
    }

    /// The elements in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &w)| (0..BITS).filter(move |b| w >> b & 1 == 1).map(move |b| i * BITS + b))
    }

    /// Parses a list such as `0-3,8`, `all`, `0-N:1/2` for ids below `nbits` (lib/bitmap-str.c: `bitmap_parselist`).
    ///
    /// # Errors
    /// EINVAL for a malformed element, EOVERFLOW for a number of 2^32 or more, ERANGE for an id of `nbits` or more;
    /// the first one from the left wins.
    pub fn parse_list(text: &[u8], nbits: usize) -> Result<Self> {
        let mut set = Self::new();
        let mut rest = text;
        while let Some(start) = find_region(rest) {
            let (region, next) = Region::parse(start, nbits as u32 - 1)?;
            region.check(nbits as u32)?;
            region.set(&mut set);
            match next {
                Some(next) => rest = next,
                None => break,
            }
        }
        Ok(set)
    }
}

impl FromIterator<usize> for Bitmap {
    fn from_iter<I: IntoIterator<Item = usize>>(ids: I) -> Self {
        let mut set = Self::new();
        ids.into_iter().for_each(|id| set.insert(id));
        set
    }
}

/// The kernel's `%*pbl`: ascending ranges, `0-3,8`; the empty set is the empty text.
impl fmt::Display for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while ids.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

/// White space as the kernel's `isspace`: Latin-1's no-break space counts.
pub fn is_space(c: u8) -> bool {
    matches!(c, b' ' | b'\t'..=b'\r' | 0xa0)
}

/// The kernel's `strstrip`.
pub fn strip(mut text: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = text
        && is_space(*first)
    {
        text = rest;
    }
    while let [rest @ .., last] = text
        && is_space(*last)
    {
        text = rest;
    }
    text
}

/// One element `start-end:off/group_len` of a list; the fields carry `struct region`'s names.
struct Region {
    start: u32,
    end: u32,
    off: u32,
    group_len: u32,
}

/// The first byte of `text`, NUL behind its end.
fn peek(text: &[u8]) -> u8 {
    text.first().copied().unwrap_or(0)
}

fn end_of_str(c: u8) -> bool {
    c == 0 || c == b'\n'
}

fn end_of_region(c: u8) -> bool {
    is_space(c) || c == b',' || end_of_str(c)
}

fn find_region(mut text: &[u8]) -> Option<&[u8]> {
    while is_space(peek(text)) || peek(text) == b',' {
        text = &text[1..];
    }
    (!end_of_str(peek(text))).then_some(text)
}

fn number(text: &[u8], last: u32) -> Result<(u32, &[u8])> {
    if peek(text) == b'N' {
        return Ok((last, &text[1..]));
    }
    let digits = text.iter().take_while(|c| c.is_ascii_digit()).count();
    if digits == 0 {
        return Err(Error::Invalid);
    }
    let value = text[..digits].iter().try_fold(0u32, |n, c| n.checked_mul(10)?.checked_add(u32::from(c - b'0')));
    Ok((value.ok_or(Error::Overflow)?, &text[digits..]))
}

impl Region {
    /// `bitmap_parse_region`: the element at the start of `text`, and what follows it unless the text ends there.
    fn parse(text: &[u8], last: u32) -> Result<(Self, Option<&[u8]>)> {
        let (start, end, rest) = if text.len() >= 3 && text[..3].eq_ignore_ascii_case(b"all") {
            (0, last, &text[3..])
        } else {
            let (start, rest) = number(text, last)?;
            if end_of_region(peek(rest)) {
                return Ok((Self::plain(start, start), Self::next(rest)));
            }
            if peek(rest) != b'-' {
                return Err(Error::Invalid);
            }
            let (end, rest) = number(&rest[1..], last)?;
            (start, end, rest)
        };
        if end_of_region(peek(rest)) {
            return Ok((Self::plain(start, end), Self::next(rest)));
        }
        if peek(rest) != b':' {
            return Err(Error::Invalid);
        }
        let (off, rest) = number(&rest[1..], last)?;
        if peek(rest) != b'/' {
            return Err(Error::Invalid);
        }
        let (group_len, rest) = number(&rest[1..], last)?;
        Ok((Self { start, end, off, group_len }, Some(rest)))
    }

    /// Without a pattern, the whole range is one group; `u32::MAX` wraps to the group length 0, which is refused.
    fn plain(start: u32, end: u32) -> Self {
        Self { start, end, off: end.wrapping_add(1), group_len: end.wrapping_add(1) }
    }

    fn next(rest: &[u8]) -> Option<&[u8]> {
        (!end_of_str(peek(rest))).then_some(rest)
    }

    fn check(&self, nbits: u32) -> Result<()> {
        if self.start > self.end || self.group_len == 0 || self.off > self.group_len {
            return Err(Error::Invalid);
        }
        if self.end >= nbits { Err(Error::Range) } else { Ok(()) }
    }

    /// The step wraps at 2^32 as it does in `bitmap_set_region`.
    fn set(&self, set: &mut Bitmap) {
        let mut start = self.start;
        while start <= self.end {
            (start..).take(self.off.min(self.end - start + 1) as usize).for_each(|id| set.insert(id as usize));
            start = start.wrapping_add(self.group_len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(text: &str, nbits: usize) -> std::result::Result<String, Error> {
        Bitmap::parse_list(text.as_bytes(), nbits).map(|set| set.to_string())
    }

    #[test]
    fn elements_and_separators() {
        for (text, want) in [
            ("0", "0"),
            ("0-3", "0-3"),
            ("0,2-3", "0,2-3"),
            ("", ""),
            (" ,\n", ""),
            ("0,,1", "0-1"),
            (",0", "0"),
            ("0 1", "0-1"),
            ("003", "3"),
            ("N", "7"),
            ("all", "0-7"),
            ("ALL", "0-7"),
            ("0-N", "0-7"),
            ("0-7:1/2", "0,2,4,6"),
            ("0-N:2/4", "0-1,4-5"),
            ("all:1/3", "0,3,6"),
            ("0-1:0/2", ""),
            ("0\n1", "0"),
            ("0\n,1", "0"),
            ("0-1\nx", "0-1"),
            ("0,\n1", "0-1"),
            ("0 \n1", "0-1"),
            ("0-1:1/2\n1", "0-1"),
            ("0-3:1/9", "0"),
        ] {
            assert_eq!(list(text, 8).as_deref(), Ok(want), "{text:?}");
        }
    }

    #[test]
    fn errors_in_the_kernels_order() {
        for (text, want) in [
            ("0-", Error::Invalid),
            ("-0", Error::Invalid),
            ("1-0", Error::Invalid),
            ("0-1-1", Error::Invalid),
            ("0 - 1", Error::Invalid),
            ("0x1", Error::Invalid),
            ("allx", Error::Invalid),
            ("0all", Error::Invalid),
            ("n", Error::Invalid),
            ("4294967295", Error::Invalid),
            ("0-4294967295", Error::Invalid),
            ("4294967296", Error::Overflow),
            ("0-1:4294967296/2", Error::Overflow),
            ("8", Error::Range),
            ("0-8", Error::Range),
            ("8,x", Error::Range),
            ("x,8", Error::Invalid),
            ("9-5", Error::Invalid),
            ("0-9:3/2", Error::Invalid),
            ("0:1/2", Error::Invalid),
            ("0-1:1/0", Error::Invalid),
        ] {
            assert_eq!(list(text, 8), Err(want), "{text:?}");
        }
    }

    proptest! {
        /// Writing a set and reading it back gives the same set, at any size the kernel can be built for.
        #[test]
        fn display_parse_round_trip(ids in proptest::collection::btree_set(0usize..8192, 0..200)) {
            let set: Bitmap = ids.iter().copied().collect();
            prop_assert_eq!(set.len(), ids.len());
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), ids.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(Bitmap::parse_list(set.to_string().as_bytes(), 8192), Ok(set));
        }

        /// The set operations agree with a set of integers.
        #[test]
        fn set_operations(a in proptest::collection::btree_set(0usize..300, 0..40), b in proptest::collection::btree_set(0usize..300, 0..40)) {
            let (x, y): (Bitmap, Bitmap) = (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(x.is_subset(&y), a.is_subset(&b));
            prop_assert_eq!(x.intersects(&y), !a.is_disjoint(&b));
            prop_assert_eq!(x.and(&y), a.intersection(&b).copied().collect::<Bitmap>());
        }

        /// No text makes the parser panic or loop.
        #[test]
        fn any_text_is_answered(text in "[0-9N,:/ \nal-]{0,24}", nbits in 1usize..5000) {
            let _ = Bitmap::parse_list(text.as_bytes(), nbits);
        }
    }
}
