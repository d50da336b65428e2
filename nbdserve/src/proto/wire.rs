//! The numbers of the transmission phase. Everything on the wire is big-endian.

use std::fmt;

/// First four bytes of a request (`NBD_REQUEST_MAGIC`).
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First four bytes of a simple reply (`NBD_SIMPLE_REPLY_MAGIC`).
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// The payload every server must accept in one request when it has advertised no limit
/// (section "Block size constraints"): 32 MiB.
pub const DEFAULT_MAX_PAYLOAD: u32 = 32 << 20;

/// What a client may ask for (`NBD_CMD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// `NBD_CMD_READ`
    Read,
    /// `NBD_CMD_WRITE`
    Write,
    /// `NBD_CMD_DISC`
    Disconnect,
    /// `NBD_CMD_FLUSH`
    Flush,
    /// `NBD_CMD_TRIM`
    Trim,
    /// `NBD_CMD_CACHE`
    Cache,
    /// `NBD_CMD_WRITE_ZEROES`
    WriteZeroes,
    /// `NBD_CMD_BLOCK_STATUS`
    BlockStatus,
}

impl Command {
    /// Every command, in the order of its number.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Write,
        Self::Disconnect,
        Self::Flush,
        Self::Trim,
        Self::Cache,
        Self::WriteZeroes,
        Self::BlockStatus,
    ];

    /// The command with this number on the wire.
    #[must_use]
    pub fn from_wire(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its number on the wire.
    #[must_use]
    pub fn to_wire(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
        }
    }
}

/// A set of bits with the usual operations.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident { $($(#[$flag_doc:meta])* $flag:ident = $bit:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub u16);

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self(1 << $bit);)*
            /// No flag.
            pub const NONE: Self = Self(0);

            /// Whether every flag of `other` is set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The flags of both.
            #[must_use]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// These flags, and `other` where `condition` holds.
            #[must_use]
            pub const fn with_if(self, other: Self, condition: bool) -> Self {
                if condition { self.union(other) } else { self }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#06x})"), self.0)
            }
        }
    };
}

flags! {
    /// What an export can do (`NBD_FLAG_*`, "Transmission flags"). A bit is set only when it is
    /// honoured.
    TransmissionFlags {
        /// Always set.
        HAS_FLAGS = 0,
        /// Writes are refused.
        READ_ONLY = 1,
        /// FLUSH is understood.
        SEND_FLUSH = 2,
        /// The FUA flag is understood.
        SEND_FUA = 3,
        /// Jumps are dear.
        ROTATIONAL = 4,
        /// TRIM is understood.
        SEND_TRIM = 5,
        /// WRITE_ZEROES is understood.
        SEND_WRITE_ZEROES = 6,
        /// The DF flag of a structured READ is understood.
        SEND_DF = 7,
        /// A flush on one connection covers the writes of all of them.
        CAN_MULTI_CONN = 8,
        /// CACHE is understood.
        SEND_CACHE = 10,
        /// The FAST_ZERO flag of WRITE_ZEROES is understood.
        SEND_FAST_ZERO = 11,
    }
}

flags! {
    /// How a request is to be carried out (`NBD_CMD_FLAG_*`).
    CommandFlags {
        /// Durable before the reply.
        FUA = 0,
        /// WRITE_ZEROES must not make a hole.
        NO_HOLE = 1,
        /// Do not fragment a structured READ.
        DF = 2,
        /// One descriptor of BLOCK_STATUS.
        REQ_ONE = 3,
        /// WRITE_ZEROES only when faster than writing.
        FAST_ZERO = 4,
        /// The length is that of a payload (extended headers).
        PAYLOAD_LEN = 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_number_and_the_next_number_is_none() {
        for (number, command) in Command::ALL.into_iter().enumerate() {
            let number = u16::try_from(number).unwrap();
            assert_eq!(command.to_wire(), number);
            assert_eq!(Command::from_wire(number), Some(command));
        }
        assert_eq!(Command::from_wire(8), None);
        assert_eq!(Command::from_wire(u16::MAX), None);
    }
}
