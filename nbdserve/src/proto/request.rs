//! Requests and simple replies of the transmission phase.

use crate::{ByteRange, Error, Kind, Result, ZeroOpts};

use super::wire::{REQUEST_MAGIC, SIMPLE_REPLY_MAGIC};
use super::{Command, CommandFlags, Errno, TransmissionFlags};

/// A request as it is on the wire, not yet checked against the export ("Request message",
/// the compact form of 28 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `NBD_CMD_FLAG_*`, unknown bits included.
    pub flags: CommandFlags,
    /// The command's number, known or not.
    pub command: u16,
    /// Chosen by the client, given back in the reply.
    pub cookie: u64,
    /// Bytes from the start of the export.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Header {
    /// Bytes on the wire.
    pub const LEN: usize = 28;

    /// Takes a request apart.
    ///
    /// # Errors
    /// `Corrupt` when the magic is wrong: the framing is lost and the connection must end.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self> {
        let rest = after_magic(bytes, REQUEST_MAGIC, "client", "a request")?;
        let (flags, rest) = take::<2>(rest);
        let (command, rest) = take::<2>(rest);
        let (cookie, rest) = take::<8>(rest);
        let (offset, rest) = take::<8>(rest);
        let (length, _) = take::<4>(rest);
        Ok(Self {
            flags: CommandFlags(u16::from_be_bytes(flags)),
            command: u16::from_be_bytes(command),
            cookie: u64::from_be_bytes(cookie),
            offset: u64::from_be_bytes(offset),
            length: u32::from_be_bytes(length),
        })
    }

    /// Puts a request together: what a client does.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let parts: [&[u8]; 6] = [
            &REQUEST_MAGIC.to_be_bytes(),
            &self.flags.0.to_be_bytes(),
            &self.command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ];
        join(&mut out, &parts);
        out
    }

    /// Bytes that follow the header and must be consumed whatever becomes of the request.
    #[must_use]
    pub fn payload_len(&self) -> u32 {
        match Command::from_wire(self.command) {
            Some(Command::Write) => self.length,
            _ => 0,
        }
    }

    /// Checks the request against what the export has advertised.
    ///
    /// # Errors
    /// What the client is to be told. The connection goes on; a payload must still be consumed.
    pub fn check(&self, rules: &Rules) -> Result<Request, Errno> {
        let command = Command::from_wire(self.command).ok_or(Errno::Inval)?;
        if command == Command::Disconnect {
            return Ok(Request::Disconnect);
        }
        if !rules.offers(command) {
            // A client that has seen READ_ONLY should know better; tell it why.
            let writes = matches!(
                command,
                Command::Write | Command::Trim | Command::WriteZeroes
            );
            let refused = writes && rules.flags.contains(TransmissionFlags::READ_ONLY);
            return Err(if refused { Errno::Perm } else { Errno::Inval });
        }
        if self.flags.0 & !rules.allowed_flags(command).0 != 0 {
            return Err(Errno::Inval);
        }
        if command == Command::Flush {
            let plain = self.offset == 0 && self.length == 0;
            return if plain {
                Ok(Request::Flush)
            } else {
                Err(Errno::Inval)
            };
        }
        let range = self.range(command, rules)?;
        let fua = self.flags.contains(CommandFlags::FUA);
        Ok(match command {
            Command::Read => Request::Read { range },
            Command::Write => Request::Write { range, fua },
            Command::Trim => Request::Trim { range, fua },
            Command::Cache => Request::Cache { range },
            Command::WriteZeroes => Request::WriteZeroes {
                range,
                opts: ZeroOpts {
                    may_trim: !self.flags.contains(CommandFlags::NO_HOLE),
                    fua,
                    fast_only: self.flags.contains(CommandFlags::FAST_ZERO),
                },
            },
            Command::Disconnect | Command::Flush | Command::BlockStatus => {
                return Err(Errno::Inval);
            }
        })
    }

    /// The range asked for, when it is short enough, aligned and within the export.
    fn range(&self, command: Command, rules: &Rules) -> Result<ByteRange, Errno> {
        let carries_data = matches!(command, Command::Read | Command::Write);
        if carries_data && self.length > rules.max_payload {
            return Err(Errno::Overflow);
        }
        let grows = matches!(command, Command::Write | Command::WriteZeroes);
        let outside = if grows { Errno::NoSpc } else { Errno::Inval };
        let range = ByteRange::new(self.offset, u64::from(self.length))
            .filter(|range| range.end() <= rules.size)
            .ok_or(outside)?;
        let block = u64::from(rules.min_block.max(1));
        if !range.start().is_multiple_of(block) || !range.end().is_multiple_of(block) {
            return Err(Errno::Inval);
        }
        Ok(range)
    }
}

/// What an export has advertised; requests are held against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Bytes of the export.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// Longest READ or WRITE in bytes.
    pub max_payload: u32,
    /// Requests are multiples of this many bytes; 1 when anything goes.
    pub min_block: u32,
}

impl Rules {
    fn offers(&self, command: Command) -> bool {
        let has = |flag| self.flags.contains(flag);
        let writable = !has(TransmissionFlags::READ_ONLY);
        match command {
            Command::Read | Command::Disconnect => true,
            Command::Write => writable,
            Command::Flush => has(TransmissionFlags::SEND_FLUSH),
            Command::Trim => writable && has(TransmissionFlags::SEND_TRIM),
            Command::Cache => has(TransmissionFlags::SEND_CACHE),
            Command::WriteZeroes => writable && has(TransmissionFlags::SEND_WRITE_ZEROES),
            // Needs a negotiated metadata context, which needs structured replies.
            Command::BlockStatus => false,
        }
    }

    /// FUA is allowed on every command once it is advertised ("NBD_CMD_FLAG_FUA ... on all
    /// commands"); the others only where they mean something.
    fn allowed_flags(&self, command: Command) -> CommandFlags {
        let has = |flag| self.flags.contains(flag);
        let zeroes = command == Command::WriteZeroes;
        CommandFlags::NONE
            .with_if(CommandFlags::FUA, has(TransmissionFlags::SEND_FUA))
            .with_if(CommandFlags::NO_HOLE, zeroes)
            .with_if(
                CommandFlags::FAST_ZERO,
                zeroes && has(TransmissionFlags::SEND_FAST_ZERO),
            )
    }
}

/// A request that may be carried out: its range lies within the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Answer with the bytes.
    Read {
        /// Which.
        range: ByteRange,
    },
    /// Store the payload.
    Write {
        /// Where.
        range: ByteRange,
        /// Durable before the reply.
        fua: bool,
    },
    /// Finish what was asked before, do not reply, close.
    Disconnect,
    /// Make every write that was answered durable, whichever connection it came on.
    Flush,
    /// The contents are no longer needed.
    Trim {
        /// Of which bytes.
        range: ByteRange,
        /// Durable before the reply.
        fua: bool,
    },
    /// The bytes will be read soon.
    Cache {
        /// Which.
        range: ByteRange,
    },
    /// Make the bytes read as zeroes.
    WriteZeroes {
        /// Which.
        range: ByteRange,
        /// How.
        opts: ZeroOpts,
    },
}

/// The header of a simple reply ("Simple reply message"); the bytes of a READ follow it when
/// `error` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// Of the request that is answered.
    pub cookie: u64,
    /// Why it failed.
    pub error: Option<Errno>,
}

impl SimpleReply {
    /// Bytes on the wire.
    pub const LEN: usize = 16;

    /// Puts the reply together.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let error = self.error.map_or(0, Errno::to_wire);
        let mut out = [0; Self::LEN];
        let parts: [&[u8]; 3] = [
            &SIMPLE_REPLY_MAGIC.to_be_bytes(),
            &error.to_be_bytes(),
            &self.cookie.to_be_bytes(),
        ];
        join(&mut out, &parts);
        out
    }

    /// Takes a reply apart into cookie and error number, 0 for success: what a client does.
    ///
    /// # Errors
    /// `Corrupt` when the magic is wrong.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<(u64, u32)> {
        let rest = after_magic(bytes, SIMPLE_REPLY_MAGIC, "server", "a simple reply")?;
        let (error, rest) = take::<4>(rest);
        let (cookie, _) = take::<8>(rest);
        Ok((u64::from_be_bytes(cookie), u32::from_be_bytes(error)))
    }
}

/// What follows the magic that `what` of the NBD `peer` begins with.
fn after_magic<'a>(bytes: &'a [u8], magic: u32, peer: &str, what: &str) -> Result<&'a [u8]> {
    let (found, rest) = take::<4>(bytes);
    let found = u32::from_be_bytes(found);
    if found == magic {
        return Ok(rest);
    }
    let what = format!("the NBD {peer} sent {found:#010x} where {what} starts with {magic:#010x}");
    Err(Error::new(Kind::Corrupt, what))
}

/// The first `N` bytes, zero where there are fewer, and the rest. Callers pass fixed layouts whose
/// parts add up, so nothing is ever missing.
fn take<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
    match bytes.split_first_chunk::<N>() {
        Some((head, rest)) => (*head, rest),
        None => ([0; N], &[]),
    }
}

/// Copies `parts` one after the other into `out`.
fn join(out: &mut [u8], parts: &[&[u8]]) {
    for (to, from) in out.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 1 << 30;

    fn rules() -> Rules {
        let flags = [
            TransmissionFlags::SEND_FLUSH,
            TransmissionFlags::SEND_FUA,
            TransmissionFlags::SEND_TRIM,
            TransmissionFlags::SEND_WRITE_ZEROES,
            TransmissionFlags::SEND_FAST_ZERO,
            TransmissionFlags::SEND_CACHE,
        ];
        Rules {
            size: SIZE,
            flags: flags
                .into_iter()
                .fold(TransmissionFlags::HAS_FLAGS, TransmissionFlags::union),
            max_payload: 32 << 20,
            min_block: 1,
        }
    }

    fn read_only() -> Rules {
        Rules {
            flags: TransmissionFlags::HAS_FLAGS.union(TransmissionFlags::READ_ONLY),
            ..rules()
        }
    }

    fn header(command: Command, flags: CommandFlags, offset: u64, length: u32) -> Header {
        Header {
            flags,
            command: command.to_wire(),
            cookie: 7,
            offset,
            length,
        }
    }

    fn plain(command: Command, offset: u64, length: u32) -> Result<Request, Errno> {
        header(command, CommandFlags::NONE, offset, length).check(&rules())
    }

    #[test]
    fn the_bytes_are_those_of_the_document() {
        let read = header(Command::Read, CommandFlags::FUA, 0x0102, 0x2000);
        let expected = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, 2, 0,
            0, 0x20, 0,
        ];
        assert_eq!(read.encode(), expected);
        let reply = SimpleReply {
            cookie: 7,
            error: Some(Errno::Io),
        };
        let expected = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7];
        assert_eq!(reply.encode(), expected);
        assert_eq!(SimpleReply::decode(&expected).unwrap(), (7, 5));
    }

    #[test]
    fn a_wrong_magic_is_corrupt() {
        let mut bytes = header(Command::Read, CommandFlags::NONE, 0, 1).encode();
        bytes[3] ^= 1;
        assert_eq!(Header::decode(&bytes).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn an_unknown_command_is_einval_and_has_no_payload() {
        for command in [7, 8, 9, u16::MAX] {
            let header = Header {
                command,
                ..header(Command::Read, CommandFlags::NONE, 0, 512)
            };
            assert_eq!(header.check(&rules()), Err(Errno::Inval));
            assert_eq!(header.payload_len(), 0);
        }
    }

    #[test]
    fn a_flag_that_is_unknown_or_of_another_command_is_einval() {
        let with = |command, flags| header(command, flags, 0, 512).check(&rules());
        for bit in 6..16 {
            let unknown = CommandFlags(1 << bit);
            assert_eq!(with(Command::Read, unknown), Err(Errno::Inval));
        }
        assert_eq!(
            with(Command::Write, CommandFlags::NO_HOLE),
            Err(Errno::Inval)
        );
        assert_eq!(
            with(Command::Trim, CommandFlags::FAST_ZERO),
            Err(Errno::Inval)
        );
        assert_eq!(with(Command::Read, CommandFlags::DF), Err(Errno::Inval));
        assert_eq!(
            with(Command::Cache, CommandFlags::REQ_ONE),
            Err(Errno::Inval)
        );
        let both = CommandFlags::NO_HOLE.union(CommandFlags::FAST_ZERO);
        assert!(with(Command::WriteZeroes, both).is_ok());
    }

    #[test]
    fn fua_is_accepted_on_every_command_exactly_when_advertised() {
        for command in [
            Command::Read,
            Command::Write,
            Command::Trim,
            Command::Cache,
            Command::WriteZeroes,
        ] {
            let header = header(command, CommandFlags::FUA, 0, 512);
            assert!(header.check(&rules()).is_ok(), "{command:?}");
            let mut without = rules();
            without.flags.0 &= !TransmissionFlags::SEND_FUA.0;
            assert_eq!(header.check(&without), Err(Errno::Inval), "{command:?}");
        }
        assert!(
            header(Command::Flush, CommandFlags::FUA, 0, 0)
                .check(&rules())
                .is_ok()
        );
    }

    #[test]
    fn a_payload_over_the_limit_is_eoverflow_and_at_the_limit_is_served() {
        for command in [Command::Read, Command::Write] {
            assert!(plain(command, 0, 32 << 20).is_ok());
            assert_eq!(plain(command, 0, (32 << 20) + 1), Err(Errno::Overflow));
        }
        assert!(plain(Command::Trim, 0, 1 << 30).is_ok());
    }

    #[test]
    fn beyond_the_end_is_enospc_for_writes_and_einval_else() {
        for (offset, length) in [
            (SIZE, 1),
            (SIZE - 1, 2),
            (u64::MAX, 1),
            (u64::MAX - 511, 512),
            (1 << 63, 4096),
        ] {
            for command in [Command::Read, Command::Trim, Command::Cache] {
                assert_eq!(plain(command, offset, length), Err(Errno::Inval));
            }
            for command in [Command::Write, Command::WriteZeroes] {
                assert_eq!(plain(command, offset, length), Err(Errno::NoSpc));
            }
        }
        assert!(plain(Command::Read, SIZE - 1, 1).is_ok());
    }

    #[test]
    fn zero_length_is_answered() {
        for command in [
            Command::Read,
            Command::Write,
            Command::Trim,
            Command::Cache,
            Command::WriteZeroes,
        ] {
            assert!(plain(command, SIZE, 0).is_ok(), "{command:?}");
        }
    }

    #[test]
    fn a_read_only_export_refuses_writes_with_eperm() {
        for command in [Command::Write, Command::Trim, Command::WriteZeroes] {
            let header = header(command, CommandFlags::NONE, 0, 512);
            assert_eq!(header.check(&read_only()), Err(Errno::Perm));
        }
        let write = header(Command::Write, CommandFlags::NONE, 0, 512);
        assert_eq!(write.payload_len(), 512);
    }

    #[test]
    fn what_is_not_advertised_is_einval() {
        let mut bare = rules();
        bare.flags = TransmissionFlags::HAS_FLAGS;
        for command in [
            Command::Flush,
            Command::Trim,
            Command::WriteZeroes,
            Command::Cache,
        ] {
            let header = header(command, CommandFlags::NONE, 0, 0);
            assert_eq!(header.check(&bare), Err(Errno::Inval), "{command:?}");
        }
        let status = header(Command::BlockStatus, CommandFlags::NONE, 0, 512);
        assert_eq!(status.check(&rules()), Err(Errno::Inval));
    }

    #[test]
    fn a_flush_takes_no_range() {
        assert_eq!(plain(Command::Flush, 0, 0), Ok(Request::Flush));
        assert_eq!(plain(Command::Flush, 512, 0), Err(Errno::Inval));
        assert_eq!(plain(Command::Flush, 0, 1), Err(Errno::Inval));
    }

    #[test]
    fn unaligned_is_einval_when_a_block_size_is_advertised() {
        let rules = Rules {
            min_block: 512,
            ..rules()
        };
        let check = |offset, length| {
            header(Command::Read, CommandFlags::NONE, offset, length).check(&rules)
        };
        assert!(check(512, 1024).is_ok());
        assert_eq!(check(1, 512), Err(Errno::Inval));
        assert_eq!(check(512, 511), Err(Errno::Inval));
    }

    proptest! {
        #[test]
        fn any_header_survives_the_wire(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u32
        ) {
            let header = Header { flags: CommandFlags(flags), command, cookie, offset, length };
            prop_assert_eq!(Header::decode(&header.encode()).unwrap(), header);
        }

        #[test]
        fn hostile_bytes_give_a_range_within_the_export_or_an_error(
            mut bytes: [u8; Header::LEN],
            size: u64,
            flags: u16,
            min_block in 0_u32..=4096,
            keep_magic: bool,
        ) {
            if keep_magic {
                bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
                // Most random commands are unknown: make the known ones likely.
                bytes[6] = 0;
                bytes[7] %= 9;
            }
            let Ok(header) = Header::decode(&bytes) else { return Ok(()) };
            let rules = Rules {
                size,
                flags: TransmissionFlags(flags),
                max_payload: 1 << 20,
                min_block,
            };
            match header.check(&rules) {
                Ok(
                    Request::Read { range }
                    | Request::Write { range, .. }
                    | Request::Trim { range, .. }
                    | Request::Cache { range }
                    | Request::WriteZeroes { range, .. },
                ) => prop_assert!(range.end() <= size),
                Ok(Request::Disconnect | Request::Flush) | Err(_) => {}
            }
        }
    }
}
