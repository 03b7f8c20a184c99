//! Whether a program is static: it asks for no interpreter and no shared library.

use anyhow::{Context as _, Result, bail};

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;

/// Fails, saying why, unless `program` is a static 64-bit little-endian ELF file.
pub fn require_static(program: &[u8]) -> Result<()> {
    if program.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("it is no 64-bit little-endian ELF file");
    }
    let table = word(program, 0x20, 8)?;
    let size = word(program, 0x36, 2)?;
    let count = word(program, 0x38, 2)?;
    for index in 0..count {
        let header = table + index * size;
        let (offset, length) = (word(program, header + 8, 8)?, word(program, header + 32, 8)?);
        match word(program, header, 4)? as u32 {
            PT_INTERP => bail!("it asks for an interpreter: {}", text(program, offset)),
            PT_DYNAMIC if needs_libraries(program, offset, length)? => bail!("it asks for shared libraries"),
            _ => {}
        }
    }
    Ok(())
}

fn needs_libraries(program: &[u8], offset: u64, length: u64) -> Result<bool> {
    for at in (offset..offset + length).step_by(16) {
        if word(program, at, 8)? == DT_NEEDED {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The little-endian number of `size` bytes at `at`.
fn word(program: &[u8], at: u64, size: usize) -> Result<u64> {
    let at = usize::try_from(at)?;
    let bytes = program.get(at..at + size).context("the file is cut short")?;
    Ok(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

fn text(program: &[u8], at: u64) -> String {
    let from = usize::try_from(at).ok().and_then(|at| program.get(at..)).unwrap_or_default();
    String::from_utf8_lossy(from.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with these program headers (kind, content).
    fn elf(segments: &[(u32, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 64 + 56 * segments.len()];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x20] = 64;
        file[0x36] = 56;
        file[0x38] = segments.len() as u8;
        for (index, (kind, content)) in segments.iter().enumerate() {
            let (header, offset) = (64 + 56 * index, file.len());
            file[header..header + 4].copy_from_slice(&kind.to_le_bytes());
            file[header + 8..header + 16].copy_from_slice(&(offset as u64).to_le_bytes());
            file[header + 32..header + 40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            file.extend_from_slice(content);
        }
        file
    }

    #[test]
    fn static_and_dynamic_programs_are_told_apart() {
        let entry = |tag: u64| [tag.to_le_bytes(), 7u64.to_le_bytes()].concat();
        let said = |file: &[u8]| require_static(file).map_err(|error| error.to_string()).err();
        assert_eq!(said(&elf(&[(1, b"code")])), None);
        assert_eq!(said(&elf(&[(PT_DYNAMIC, &entry(5))])), None, "static-pie");
        assert_eq!(said(&elf(&[(PT_DYNAMIC, &entry(DT_NEEDED))])).as_deref(), Some("it asks for shared libraries"));
        let interpreter = said(&elf(&[(PT_INTERP, b"/lib64/ld.so\0")]));
        assert_eq!(interpreter.as_deref(), Some("it asks for an interpreter: /lib64/ld.so"));
        assert!(said(b"#!/bin/sh").is_some());
        assert!(said(&elf(&[(1, b"")])[..80]).is_some());
    }
}
