//! Netlink and generic netlink messages as bytes. Pure: no sockets. Source: `netlink(7)` and the
//! kernel's `linux/netlink.h` and `linux/genetlink.h`. Numbers are in the machine's byte order.

use nbdserve::{Error, Kind, Result};

/// `NLM_F_REQUEST`
const REQUEST: u16 = 0x01;
/// `NLM_F_ACK`
const ACK: u16 = 0x04;
/// `NLM_F_CAPPED`: an error message that does not repeat the request's payload.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: attributes follow an error message (extended ACK).
const ACK_TLVS: u16 = 0x200;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// `NLMSGERR_ATTR_MSG`
const ERROR_TEXT: u16 = 1;
/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are its number (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct genlmsghdr`.
const GENERIC_HEADER: usize = 4;

/// Puts a request together.
#[derive(Debug)]
pub(crate) struct Builder {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Builder {
    /// A request of `family` with `command`, which the kernel acknowledges.
    pub(crate) fn new(family: u16, sequence: u32, command: u8, version: u8) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(family.to_ne_bytes());
        bytes.extend((REQUEST | ACK).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend([command, version, 0, 0]);
        Self {
            bytes,
            too_long: false,
        }
    }

    pub(crate) fn u32(&mut self, attribute: u16, value: u32) -> &mut Self {
        self.raw(attribute, &value.to_ne_bytes())
    }

    pub(crate) fn u64(&mut self, attribute: u16, value: u64) -> &mut Self {
        self.raw(attribute, &value.to_ne_bytes())
    }

    /// A string; the terminating zero is added.
    pub(crate) fn string(&mut self, attribute: u16, value: &str) -> &mut Self {
        self.nest(attribute, |inner| {
            inner.bytes.extend(value.as_bytes());
            inner.bytes.push(0);
        })
    }

    /// An attribute that holds attributes.
    pub(crate) fn nested(&mut self, attribute: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.nest(attribute | NESTED, fill)
    }

    /// The message.
    ///
    /// # Errors
    /// `Limit` when a part is longer than netlink can say.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        if self.too_long || len == u32::MAX {
            return Err(Error::new(
                Kind::Limit,
                "a request to the kernel is longer than a netlink attribute can be",
            ));
        }
        Ok(self.bytes)
    }

    fn raw(&mut self, attribute: u16, value: &[u8]) -> &mut Self {
        self.nest(attribute, |inner| inner.bytes.extend(value))
    }

    fn nest(&mut self, attribute: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend(0_u16.to_ne_bytes());
        self.bytes.extend(attribute.to_ne_bytes());
        fill(self);
        match u16::try_from(self.bytes.len() - start) {
            Ok(len) => self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
        self.bytes.resize(align(self.bytes.len()), 0);
        self
    }
}

/// One message from the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// The end of an answer: done (0) or refused with an errno and perhaps the kernel's words.
    Outcome {
        sequence: u32,
        errno: i32,
        text: Option<String>,
    },
    /// A generic netlink message.
    Generic {
        family: u16,
        sequence: u32,
        command: u8,
        attributes: Attributes<'a>,
    },
}

/// The messages in one datagram. Stops at the first that is cut short.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        loop {
            let len = usize::try_from(get_u32(bytes, 0)?).ok()?;
            let one = bytes.get(..len).filter(|one| one.len() >= HEADER)?;
            bytes = bytes.get(align(len)..).unwrap_or(&[]);
            if let Some(message) = decode(one) {
                return Some(message);
            }
        }
    })
}

/// `None` for a message of another sort (`NLMSG_NOOP`, `NLMSG_DONE`) or one that is too short.
fn decode(message: &[u8]) -> Option<Message<'_>> {
    let family = get_u16(message, 4)?;
    let flags = get_u16(message, 6)?;
    let sequence = get_u32(message, 8)?;
    let payload = message.get(HEADER..)?;
    if family == ERROR {
        let errno = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
        return Some(Message::Outcome {
            sequence,
            errno: errno.checked_neg()?,
            text: (flags & ACK_TLVS != 0)
                .then(|| error_text(payload, flags))
                .flatten(),
        });
    }
    if family < 0x10 {
        return None;
    }
    Some(Message::Generic {
        family,
        sequence,
        command: *payload.first()?,
        attributes: Attributes(payload.get(GENERIC_HEADER..)?),
    })
}

/// The kernel's words behind `struct nlmsgerr`.
fn error_text(payload: &[u8], flags: u16) -> Option<String> {
    // errno, then the request's header, then, unless capped, the rest of the request.
    let request = payload.get(4..)?;
    let skip = if flags & CAPPED != 0 {
        HEADER
    } else {
        align(usize::try_from(get_u32(request, 0)?).ok()?)
    };
    let text = Attributes(request.get(skip..)?).find(ERROR_TEXT)?;
    Some(string(text))
}

/// A row of attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// Number and value of each, up to the first that is cut short.
    pub(crate) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let len = usize::from(get_u16(rest, 0)?);
            let attribute = get_u16(rest, 2)? & TYPE_MASK;
            let value = rest.get(4..len)?;
            rest = rest.get(align(len)..).unwrap_or(&[]);
            Some((attribute, value))
        })
    }

    /// The value of the first attribute with this number.
    pub(crate) fn find(self, attribute: u16) -> Option<&'a [u8]> {
        self.iter()
            .find(|(number, _)| *number == attribute)
            .map(|(_, value)| value)
    }

    pub(crate) fn u16(self, attribute: u16) -> Option<u16> {
        get_u16(self.find(attribute)?, 0)
    }

    pub(crate) fn u32(self, attribute: u16) -> Option<u32> {
        get_u32(self.find(attribute)?, 0)
    }
}

/// A string that ends at the first zero.
pub(crate) fn string(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn get_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let end = at.checked_add(2)?;
    Some(u16::from_ne_bytes(bytes.get(at..end)?.try_into().ok()?))
}

fn get_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    Some(u32::from_ne_bytes(bytes.get(at..end)?.try_into().ok()?))
}

/// Rounds up to the four bytes to which messages and attributes are aligned.
fn align(len: usize) -> usize {
    len.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_is_read() {
        let mut builder = Builder::new(0x1c, 9, 1, 1);
        builder.u64(2, 1 << 40).u32(3, 512).string(10, "loopmount");
        builder.nested(7, |sockets| {
            sockets.nested(1, |item| {
                item.u32(1, 5);
            });
        });
        let bytes = builder.finish().unwrap();
        assert!(bytes.len().is_multiple_of(4));
        let all: Vec<_> = messages(&bytes).collect();
        let [
            Message::Generic {
                family: 0x1c,
                sequence: 9,
                command: 1,
                attributes,
            },
        ] = all[..]
        else {
            panic!("{all:?}")
        };
        assert_eq!(attributes.find(2), Some(&(1_u64 << 40).to_ne_bytes()[..]));
        assert_eq!(attributes.u32(3), Some(512));
        assert_eq!(string(attributes.find(10).unwrap()), "loopmount");
        let item = Attributes(attributes.find(7).unwrap()).find(1).unwrap();
        assert_eq!(Attributes(item).u32(1), Some(5));
    }

    fn outcome(errno: i32, flags: u16, tail: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(
            u32::try_from(HEADER + 4 + tail.len())
                .unwrap()
                .to_ne_bytes(),
        );
        bytes.extend(ERROR.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(3_u32.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend((-errno).to_ne_bytes());
        bytes.extend(tail);
        bytes
    }

    #[test]
    fn the_kernels_words_are_found_capped_or_not() {
        let mut request = Builder::new(0x1c, 3, 1, 1);
        request.u32(3, 512);
        let request = request.finish().unwrap();
        let mut words = Builder::new(0, 0, 0, 0);
        words.string(ERROR_TEXT, "bad size");
        let words = words.finish().unwrap()[HEADER + GENERIC_HEADER..].to_vec();
        let expected = Message::Outcome {
            sequence: 3,
            errno: 22,
            text: Some("bad size".to_owned()),
        };
        let capped = [&request[..HEADER], &words].concat();
        let bytes = outcome(22, ACK_TLVS | CAPPED, &capped);
        assert_eq!(messages(&bytes).next(), Some(expected));
        let whole = [&request[..], &words].concat();
        let bytes = outcome(22, ACK_TLVS, &whole);
        let Some(Message::Outcome { text, .. }) = messages(&bytes).next() else {
            panic!()
        };
        assert_eq!(text.as_deref(), Some("bad size"));
    }

    #[test]
    fn lengths_that_lie_end_the_iteration() {
        for len in [0_u32, 1, 15, 17, u32::MAX, u32::MAX - 2] {
            let mut bytes = vec![0; 16];
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(messages(&bytes).count(), 0, "length {len}");
        }
        for len in [0_u16, 1, 3, 9, u16::MAX] {
            let mut bytes = vec![0; 8];
            bytes[..2].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(Attributes(&bytes).iter().count(), 0, "length {len}");
        }
    }

    #[test]
    fn an_attribute_that_is_too_long_is_refused() {
        let mut builder = Builder::new(0x1c, 1, 1, 1);
        builder.string(10, &"x".repeat(70_000));
        assert_eq!(builder.finish().unwrap_err().kind(), Kind::Limit);
    }
}
