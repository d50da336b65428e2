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
mod tests;
