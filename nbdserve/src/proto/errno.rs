//! The errors that may go over the wire ("Error values").

use crate::{Error, Kind};

/// An error value of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// `NBD_EPERM`: the export is read-only, or policy forbids it.
    Perm,
    /// `NBD_EIO`: the data cannot be had.
    Io,
    /// `NBD_EINVAL`: the request itself is wrong.
    Inval,
    /// `NBD_ENOSPC`: no room, or a write beyond the end.
    NoSpc,
    /// `NBD_EOVERFLOW`: the request is too long.
    Overflow,
    /// `NBD_ENOTSUP`: zeroing would not be fast. For nothing else.
    NotSup,
    /// `NBD_ESHUTDOWN`: the server is going away.
    Shutdown,
}

impl Errno {
    /// Its number on the wire. These are the protocol's own, equal to Linux's errno only by
    /// design, not on every machine.
    #[must_use]
    pub fn to_wire(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
        }
    }
}

impl From<&Error> for Errno {
    /// What a client is told of a failure below. It differs from [`Kind::errno`] where the
    /// protocol or the Linux client does:
    ///
    /// * `TimedOut` and `Limit` are EIO: the protocol has no ETIMEDOUT, and clients take
    ///   `NBD_ENOMEM` for "ask again", which would spin.
    /// * `Unsupported` is EIO: ENOTSUP is reserved for fast zeroing, and a block layer that gets
    ///   it for a flush or a trim carries on as if nothing had to be done.
    /// * `ReadOnly` is EPERM: the protocol has no EROFS.
    fn from(error: &Error) -> Self {
        match error.kind() {
            Kind::Io
            | Kind::TimedOut
            | Kind::Changed
            | Kind::Corrupt
            | Kind::NotThisFormat
            | Kind::Unsupported
            | Kind::Secret
            | Kind::Limit => Self::Io,
            Kind::OutOfRange => Self::Inval,
            Kind::ReadOnly | Kind::Denied => Self::Perm,
            Kind::NoSpace => Self::NoSpc,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_failure_below_becomes_enotsup_enomem_or_a_number_the_protocol_lacks() {
        let allowed = [1, 5, 22, 28, 75, 108];
        for kind in [
            Kind::Io,
            Kind::TimedOut,
            Kind::Changed,
            Kind::OutOfRange,
            Kind::ReadOnly,
            Kind::NoSpace,
            Kind::NotThisFormat,
            Kind::Unsupported,
            Kind::Corrupt,
            Kind::Limit,
            Kind::Secret,
            Kind::Denied,
        ] {
            let wire = Errno::from(&Error::new(kind, "x")).to_wire();
            assert!(allowed.contains(&wire), "{kind:?} became {wire}");
        }
    }

    #[test]
    fn read_only_and_no_space_keep_their_meaning() {
        let wire = |kind| Errno::from(&Error::new(kind, "x")).to_wire();
        assert_eq!(wire(Kind::ReadOnly), 1);
        assert_eq!(wire(Kind::NoSpace), 28);
    }
}
