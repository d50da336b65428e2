use std::time::Duration;

use super::*;

#[test]
fn a_block_is_claimed_once_and_not_dropped_while_wanted() {
    let block = Block::in_memory(10);
    assert!(block.claim());
    assert!(!block.claim());
    assert!(!block.drop_unwanted());
    let unwanted = Block::in_memory(10);
    assert!(unwanted.drop_unwanted());
    assert!(!unwanted.claim());
}

fn patience(limit: Duration) -> Patience<'static> {
    Patience {
        stop: &|| Ok(()),
        elsewhere: &|| 0,
        limit,
        verify: false,
    }
}

#[test]
fn runs_of_stored_pieces_are_found_across_words() {
    let cx = crate::Cx::new(64 << 20);
    let file = Arc::new(Backing::temporary(&cx).unwrap());
    let len = 200 * PIECE_BYTES + 100;
    let mut bits = vec![0_u64; 4];
    for index in (0..3).chain(64..130).chain(200..201) {
        bits[index / 64] |= 1 << (index % 64);
    }
    let block = Block::stored(len, file, 0, bits);
    let runs = [
        (0, 3, true),
        (3, 64, false),
        (64, 130, true),
        (130, 200, false),
    ];
    for (start, end, zero) in runs {
        let found = block.run(start * PIECE_BYTES + 7, len, false);
        assert_eq!(found, (end * PIECE_BYTES, zero), "{start}");
    }
    assert_eq!(block.run(len - 1, len, false), (len, true));
    assert_eq!(
        block.run(70 * PIECE_BYTES, 71 * PIECE_BYTES, false).0,
        71 * PIECE_BYTES
    );
    assert_eq!(block.tally(0, len, false), (131 * PIECE_BYTES, 0));
    assert_eq!(
        block.tally(10, 4 * PIECE_BYTES + 5, false),
        (PIECE_BYTES + 5, 0)
    );
}

#[test]
fn what_was_not_decoded_yet_counts_as_unknown() {
    let block = Block::in_memory(4 * PIECE_BYTES);
    assert!(block.claim());
    assert_eq!(block.tally(0, 4 * PIECE_BYTES, false), (0, 4 * PIECE_BYTES));
    block.publish(0, PIECE, true);
    block.publish(PIECE_BYTES, PIECE, false);
    let tally = block.tally(0, 4 * PIECE_BYTES, false);
    assert_eq!(tally, (PIECE_BYTES, 2 * PIECE_BYTES));
    let tally = block.tally(0, 4 * PIECE_BYTES, true);
    assert_eq!(tally, (0, 4 * PIECE_BYTES), "its check is not known");
}

#[test]
fn a_wait_without_progress_times_out() {
    let block = Block::in_memory(10);
    assert!(block.claim());
    let error = block.wait(10, &patience(Duration::from_millis(1)));
    assert_eq!(error.map_err(|e| e.kind()), Err(Kind::TimedOut));
}

#[test]
fn progress_elsewhere_counts_only_for_a_block_in_the_queue() {
    let count = std::sync::atomic::AtomicU64::new(0);
    let stopped = || match count.load(Ordering::Relaxed) {
        0..20 => Ok(()),
        _ => Err(Error::new(Kind::Io, "stopped")),
    };
    let mut patience = patience(Duration::from_millis(1));
    patience.stop = &stopped;
    let elsewhere = || count.fetch_add(1, Ordering::Relaxed);
    patience.elsewhere = &elsewhere;
    let block = Block::in_memory(10);
    let waited = block.wait(10, &patience).map_err(|e| e.kind());
    assert_eq!(waited, Err(Kind::Io), "it waits as long as others progress");
    assert!(block.claim());
    count.store(0, Ordering::Relaxed);
    let waited = block.wait(10, &patience).map_err(|e| e.kind());
    assert_eq!(waited, Err(Kind::TimedOut), "its own decoder is stuck");
}

#[test]
fn bytes_given_early_are_remembered_as_served() {
    let block = Block::in_memory(2 * PIECE_BYTES);
    assert!(block.claim());
    let mut filling = block.fill().unwrap().unwrap();
    filling.advance(PIECE);
    filling.publish(PIECE);
    block.publish(0, PIECE, false);
    let waited = block.wait(PIECE_BYTES, &patience(Duration::from_secs(1)));
    assert_eq!(waited.map_err(|e| e.kind()), Ok(Waited::Ready));
    assert!(block.fail(Error::new(Kind::Corrupt, "check")));
    let mut buf = [1; 10];
    let copied = block.copy(0, &mut buf).map_err(|e| e.kind());
    assert_eq!(copied, Err(Kind::Corrupt), "a second look after the copy");
}
