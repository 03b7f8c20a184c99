//! Classic BPF, as little of it as a filter needs.

/// One instruction: operation, jump if true, jump if false, operand (`struct sock_filter`).
pub type Insn = (u16, u8, u8, u32);

/// Loads the word at `offset` of the call's description.
pub(super) fn load(offset: u32) -> Insn {
    ((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, offset)
}

/// Ends with `action`.
pub(super) fn ret(action: u32) -> Insn {
    ((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, action)
}

/// Skips `count` instructions.
pub(super) fn jump(count: usize) -> Insn {
    ((libc::BPF_JMP | libc::BPF_JA) as u16, 0, 0, count as u32)
}

/// Skips `yes` instructions where the loaded word is `value`, else `no`.
pub(super) fn eq(value: u32, yes: u8, no: u8) -> Insn {
    ((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, yes, no, value)
}

/// Skips `yes` instructions where the loaded word is at least `value`, else `no`.
pub(super) fn ge(value: u32, yes: u8, no: u8) -> Insn {
    ((libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16, yes, no, value)
}

/// Skips `yes` instructions where the loaded word has one of `bits`, else `no`.
pub(super) fn any_bit(bits: u32, yes: u8, no: u8) -> Insn {
    ((libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16, yes, no, bits)
}

/// Code that picks the case of the loaded number by halving, with `other` for numbers up to `last` that have
/// no case, and `beyond` for greater ones. `cases` are sorted by number; their code always returns.
pub(super) fn select(cases: &[(u32, Vec<Insn>)], other: Insn, last: u32, beyond: Insn) -> Vec<Insn> {
    // Runs of numbers with equal code: (first number, code).
    let mut runs: Vec<(u32, Vec<Insn>)> = Vec::new();
    let mut push = |from: u32, code: &[Insn]| {
        if runs.last().is_none_or(|(_, before)| before != code) {
            runs.push((from, code.to_vec()));
        }
    };
    let mut next = 0;
    let gap = |from: u32, until: u32, push: &mut dyn FnMut(u32, &[Insn])| {
        if from <= last && from < until {
            push(from, &[other]);
        }
        if until > last + 1 {
            push(from.max(last + 1), &[beyond]);
        }
    };
    for (number, code) in cases {
        gap(next, *number, &mut push);
        push(*number, code);
        next = number + 1;
    }
    gap(next, u32::MAX, &mut push);
    halve(&runs)
}

fn halve(runs: &[(u32, Vec<Insn>)]) -> Vec<Insn> {
    if let [(_, code)] = runs {
        return code.clone();
    }
    let (low, high) = runs.split_at(runs.len() / 2);
    let (low, middle, high) = (halve(low), high[0].0, halve(high));
    let mut code = match u8::try_from(low.len()) {
        Ok(skip) => vec![ge(middle, skip, 0)],
        Err(_) => vec![ge(middle, 0, 1), jump(low.len())],
    };
    code.extend(low);
    code.extend(high);
    code
}
