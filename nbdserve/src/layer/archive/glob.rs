//! Names of entries as users write them: `disk.img`, `*.vmdk`, `images/disk-[0-9].raw`.

/// A name without `./` before it, which some archivers write and nobody types.
pub(super) fn trimmed(name: &[u8]) -> &[u8] {
    let mut name = name;
    while let Some(rest) = name.strip_prefix(b"./") {
        name = rest;
    }
    name
}

/// Whether `pattern` means the whole of `name`: `*` is any characters, `/` too, `?` any one,
/// `[a-z]` one of these, `[!a-z]` one of all others, and `\` takes the next character as it is. A
/// `[` that nothing closes stands for itself.
///
/// Takes at most the product of the two lengths, whatever they hold.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut at, mut done) = (0_usize, 0_usize);
    // Where to go on when what follows the last `*` does not match: behind the `*`, and the first
    // character that it has not swallowed yet.
    let mut again: Option<(usize, usize)> = None;
    loop {
        let rest = pattern.get(at..).unwrap_or_default();
        if rest.first() == Some(&'*') {
            at = at.saturating_add(1);
            again = Some((at, done));
            continue;
        }
        let next = name.get(done);
        let step = match next {
            Some(next) => one(rest, *next),
            None if rest.is_empty() => return true,
            // Nothing is left that a `*` could give back.
            None => return false,
        };
        if let Some(used) = step {
            at = at.saturating_add(used);
            done = done.saturating_add(1);
            continue;
        }
        let Some((after, swallowed)) = again else {
            return false;
        };
        let swallowed = swallowed.saturating_add(1);
        again = Some((after, swallowed));
        (at, done) = (after, swallowed);
    }
}

/// How much of `pattern` means the one character `c`; `None` when it does not.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', literal, ..] => (*literal == c).then_some(2),
        ['[', rest @ ..] => match class(rest, c) {
            Some((true, used)) => used.checked_add(1),
            Some((false, _)) => None,
            None => (c == '[').then_some(1),
        },
        [literal, ..] => (*literal == c).then_some(1),
        [] => None,
    }
}

/// Whether `c` is in the class that begins here, and how long that is with its `]`; `None` when
/// nothing closes it.
fn class(pattern: &[char], c: char) -> Option<(bool, usize)> {
    let (others, body) = match pattern {
        ['!' | '^', rest @ ..] => (true, rest),
        _ => (false, pattern),
    };
    let mut found = false;
    let mut at = 0_usize;
    loop {
        match body.get(at..)? {
            // As the first one it stands for itself.
            [']', ..] if at > 0 => break,
            [from, '-', to, ..] if *to != ']' => {
                found |= (*from..=*to).contains(&c);
                at = at.checked_add(3)?;
            }
            [single, ..] => {
                found |= *single == c;
                at = at.checked_add(1)?;
            }
            [] => return None,
        }
    }
    let used = at.checked_add(1)?.checked_add(usize::from(others))?;
    Some((found != others, used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_the_whole_name() {
        for (pattern, name, expected) in [
            ("disk.img", "disk.img", true),
            ("disk.img", "a/disk.img", false),
            ("disk", "disk.img", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*.img", "a/b/disk.img", true),
            ("*.img", "disk.img.gz", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("disk?.raw", "disk1.raw", true),
            ("disk?.raw", "disk.raw", false),
            ("?", "ä", true),
            ("disk[0-2].raw", "disk2.raw", true),
            ("disk[0-2].raw", "disk3.raw", false),
            ("disk[!0-2].raw", "disk3.raw", true),
            ("disk[^0-2].raw", "disk1.raw", false),
            ("[]x]", "]", true),
            ("[]x]", "x", true),
            ("[a-]", "-", true),
            ("[", "[", true),
            ("[abc", "[abc", true),
            ("[!", "[!", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("\\[a]", "[a]", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn many_stars_take_no_longer_than_they_must() {
        let name = "a".repeat(5000);
        let pattern = "*a".repeat(500) + "b";
        assert!(!matches(&pattern, &name));
    }

    #[test]
    fn leading_dots_and_slashes_are_no_part_of_a_name() {
        assert_eq!(trimmed(b"././disk"), b"disk");
        assert_eq!(trimmed(b"../disk"), b"../disk");
        assert_eq!(trimmed(b"/disk"), b"/disk");
        assert_eq!(trimmed(b"./"), b"");
    }
}
