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
        0x25, 0x60, 0x95, 0x13, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0,
        0x20, 0,
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
    let check =
        |offset, length| header(Command::Read, CommandFlags::NONE, offset, length).check(&rules);
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
