//! Tracker layer: finds members of the kernel's structures, and its functions, in its description of its types
//! (Documentation/bpf/btf.rst, /sys/kernel/btf/vmlinux).

use std::io;

const MAGIC: u32 = 0xeb9f;

// BTF_KIND_*
const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

/// The bytes of struct btf_type and struct btf_member.
const HEAD: usize = 12;
const MEMBER: usize = 12;
/// Those of struct btf_param.
const PARAM: usize = 8;
/// Structures inside each other; more than this is no kernel's.
const DEEPEST: usize = 32;

/// The distance in bytes of a member from the beginning of a structure; it may stand in unnamed structures and unions inside.
///
/// # Errors
/// InvalidData if `data` is no such description, NotFound if it has no such member.
pub(super) fn offset_of(data: &[u8], structure: &str, member: &str) -> io::Result<usize> {
    let types = Types::parse(data).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no BTF"))?;
    let is_it = |at: &usize| types.kind(*at) == Some(STRUCT) && types.name(*at) == Some(structure.as_bytes());
    let bits = types.starts.iter().copied().find(is_it).and_then(|at| types.find(at, member.as_bytes(), DEEPEST));
    let bits = bits.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{structure} has no {member}")))?;
    Ok(bits as usize / 8)
}

/// The number of a function whose first argument is the address of a structure, and of how many arguments it is the first.
///
/// # Errors
/// InvalidData if `data` is no such description, NotFound if it has no such function.
pub(super) fn function_on(data: &[u8], function: &str, structure: &str) -> io::Result<(u32, usize)> {
    let types = Types::parse(data).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no BTF"))?;
    let is_it = |at: &usize| types.kind(*at) == Some(FUNC) && types.name(*at) == Some(function.as_bytes());
    let found = types.starts.iter().position(is_it).and_then(|index| {
        let prototype = types.target(types.starts[index])?;
        let argument = types.start(word(types.types, prototype + HEAD + PARAM - 4)?)?;
        let pointee = types.target(argument).filter(|_| types.kind(argument) == Some(PTR))?;
        let fits = types.kind(pointee) == Some(STRUCT) && types.name(pointee) == Some(structure.as_bytes());
        fits.then_some((index as u32 + 1, types.vlen(prototype)?))
    });
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no {function} on {structure}")))
}

struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where in `types` each begins; the type with the number 1 is the first.
    starts: Vec<usize>,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn section(data: &[u8], start: u32, len: u32) -> Option<&[u8]> {
    data.get(start as usize..)?.get(..len as usize)
}

impl<'a> Types<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let header = |field: usize| word(data, 4 * field);
        let magic = u16::from_ne_bytes(data.get(..2)?.try_into().ok()?);
        let body = data.get(header(1)? as usize..)?;
        let (types, strings) = (section(body, header(2)?, header(3)?)?, section(body, header(4)?, header(5)?)?);
        let mut found = Self { types, strings, starts: Vec::new() };
        let mut at = 0;
        while at < types.len() {
            found.starts.push(at);
            let vlen = found.vlen(at)?;
            at += HEAD
                + match found.kind(at)? {
                    INT | VAR | DECL_TAG => 4,
                    ARRAY => 12,
                    STRUCT | UNION | DATASEC | ENUM64 => 12 * vlen,
                    ENUM | FUNC_PROTO => 8 * vlen,
                    0..=18 => 0,
                    _ => return None,
                };
        }
        (u32::from(magic) == MAGIC).then_some(found)
    }

    fn kind(&self, at: usize) -> Option<u32> {
        Some(word(self.types, at + 4)? >> 24 & 0x1f)
    }

    fn vlen(&self, at: usize) -> Option<usize> {
        Some((word(self.types, at + 4)? & 0xffff) as usize)
    }

    /// Where the type with a number begins.
    fn start(&self, id: u32) -> Option<usize> {
        self.starts.get((id as usize).checked_sub(1)?).copied()
    }

    /// The type that another one is about.
    fn target(&self, at: usize) -> Option<usize> {
        self.start(word(self.types, at + 8)?)
    }

    /// The name of a type or of a member, both of which begin with it.
    fn name(&self, at: usize) -> Option<&'a [u8]> {
        self.strings.get(word(self.types, at)? as usize..)?.split(|byte| *byte == 0).next()
    }

    /// The member's distance in bits from the beginning of a structure, a union or another name for one.
    fn find(&self, at: usize, wanted: &[u8], depth: usize) -> Option<u32> {
        let depth = depth.checked_sub(1)?;
        match self.kind(at)? {
            STRUCT | UNION => {}
            TYPEDEF..=RESTRICT => return self.find(self.target(at)?, wanted, depth),
            _ => return None,
        }
        // With bit fields among the members, the upper byte is their width.
        let mask = if word(self.types, at + 4)? >> 31 == 0 { u32::MAX } else { 0x00ff_ffff };
        (0..self.vlen(at)?).map(|i| at + HEAD + i * MEMBER).find_map(|member| {
            let offset = word(self.types, member + 8)? & mask;
            match self.name(member)? {
                name if name == wanted => Some(offset),
                b"" => Some(offset + self.find(self.start(word(self.types, member + 4)?)?, wanted, depth)?),
                _ => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its name's place among the strings, kind, kind_flag, vlen, size or type, and what follows.
    type Type<'a> = (u32, u32, u32, u32, u32, &'a [u32]);

    fn describe(types: &[Type<'_>], strings: &str) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, kind, flag, vlen, size, rest) in types {
            body.extend([*name, flag << 31 | kind << 24 | vlen, *size].iter().chain(*rest).flat_map(|word| word.to_ne_bytes()));
        }
        let mut data = (MAGIC as u16).to_ne_bytes().to_vec();
        data.extend([1, 0]);
        data.extend([24, 0, body.len() as u32, body.len() as u32, strings.len() as u32].iter().flat_map(|word| word.to_ne_bytes()));
        data.extend(body);
        data.extend(strings.as_bytes());
        data
    }

    #[test]
    fn members_of_unnamed_structures_are_found() {
        // 1 "int"; 5 "task"; 10 "a"; 12 "pid"; 16 "state"
        let strings = "\0int\0task\0a\0pid\0state\0";
        let types: &[Type<'_>] = &[
            (1, INT, 0, 0, 4, &[32]),
            // A forward declaration of the same name comes first.
            (5, 7, 0, 0, 0, &[]),
            (0, ENUM, 0, 1, 4, &[16, 0]),
            (0, UNION, 0, 2, 8, &[10, 1, 0, 0, 5, 0]),
            (0, STRUCT, 1, 2, 8, &[10, 1, 3 << 24, 12, 1, 32]),
            (5, STRUCT, 1, 3, 24, &[16, 1, 0, 0, 7, 64, 0, 4, 128]),
            (0, 10, 0, 0, 4, &[]),
        ];
        let data = describe(types, strings);
        assert_eq!(offset_of(&data, "task", "state").ok(), Some(0));
        assert_eq!(offset_of(&data, "task", "pid").ok(), Some(12), "through a const union and a struct with bit fields");
        assert_eq!(offset_of(&data, "task", "tgid").map_err(|e| e.kind()), Err(io::ErrorKind::NotFound));
        assert_eq!(offset_of(&data, "cred", "pid").map_err(|e| e.kind()), Err(io::ErrorKind::NotFound));
    }

    #[test]
    fn functions_are_found_by_what_they_are_on() {
        // 1 "task"; 6 "set"; 10 "get"
        let strings = "\0task\0set\0get\0";
        let types: &[Type<'_>] = &[
            (1, STRUCT, 0, 0, 0, &[]),
            (0, PTR, 0, 0, 1, &[]),
            (0, FUNC_PROTO, 0, 2, 0, &[0, 2, 0, 1]),
            (6, FUNC, 0, 0, 3, &[]),
            (0, FUNC_PROTO, 0, 0, 0, &[]),
            (10, FUNC, 0, 0, 5, &[]),
        ];
        let data = describe(types, strings);
        assert_eq!(function_on(&data, "set", "task").ok(), Some((4, 2)));
        for (function, structure) in [("set", "other"), ("get", "task"), ("task", "task"), ("put", "task")] {
            let error = function_on(&data, function, structure).expect_err(function);
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{function} on {structure}");
        }
    }

    #[test]
    fn what_is_broken_is_refused() {
        let own: &[Type<'_>] = &[(1, STRUCT, 0, 1, 4, &[0, 1, 0])];
        let data = describe(own, "\0t\0");
        assert!(offset_of(&data, "t", "pid").is_err(), "a structure inside itself");
        for len in 0..data.len() {
            assert!(offset_of(&data[..len], "t", "pid").is_err());
        }
        for at in 0..data.len() {
            let mut data = data.clone();
            data[at] ^= 0xff;
            assert!(offset_of(&data, "t", "pid").is_err());
        }
    }

    #[test]
    fn the_kernel_describes_its_tasks() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            return crate::tracker::skipped("the kernel's BTF", "there is none");
        };
        let offset = |member| offset_of(&data, "task_struct", member).expect(member);
        assert_eq!(offset("tgid"), offset("pid") + 4);
        // In an unnamed structure where the layout is randomised, and in thread_info otherwise.
        assert!(offset("pid") > offset("stack"));
    }
}
