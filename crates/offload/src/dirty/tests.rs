//! Order, turns and what is gone.

use super::*;
use crate::PageName;
use crate::memory::Memory;
use crate::sync::SharedArc;

/// Pages of a sequence with these ids.
fn pages(sequence: u32, ids: impl IntoIterator<Item = u64>) -> Vec<Arc<Page>> {
    let memory = Memory::new(64, usize::MAX);
    let name = PageName { sequence, layer: 0, kv_head: 0, page_idx: 0 };
    let frame = || memory.take().expect("the machine has some").expect("a frame is free").0;
    ids.into_iter()
        .map(|id| Arc::new(Page::dirty(id, name, 1, SharedArc::new(frame()), None)))
        .collect()
}

fn dirty(pages: &[&[Arc<Page>]]) -> Dirty {
    let mut dirty = Dirty::new();
    pages.iter().flat_map(|pages| pages.iter()).for_each(|page| dirty.insert(page));
    dirty
}

/// The sequence and ids of a batch of three.
fn batch(dirty: &mut Dirty, preferred: Option<u32>) -> (u32, Vec<u64>) {
    let pages = dirty.take(3, preferred);
    assert!(pages.iter().all(|page| page.name.sequence == pages[0].name.sequence));
    (pages[0].name.sequence, pages.iter().map(|page| Arc::downgrade(page).id()).collect())
}

#[test]
fn sequences_take_turns_in_batches_of_one() {
    let flood = pages(1, 0..10);
    let few = pages(2, 10..14);
    let mut dirty = dirty(&[&flood, &few]);
    assert_eq!((dirty.len(), dirty.num_pages()), (14, 14));
    assert_eq!(batch(&mut dirty, None), (1, vec![0, 1, 2]));
    assert_eq!(batch(&mut dirty, None), (2, vec![10, 11, 12]));
    // One that comes meanwhile is behind both.
    let third = pages(3, [14]);
    dirty.insert(&third[0]);
    assert_eq!(batch(&mut dirty, None), (1, vec![3, 4, 5]));
    assert_eq!(batch(&mut dirty, None), (2, vec![13]));
    assert_eq!(batch(&mut dirty, None), (3, vec![14]));
    assert_eq!(batch(&mut dirty, None), (1, vec![6, 7, 8]));
    assert_eq!((dirty.len(), dirty.num_pages()), (1, 1));
}

#[test]
fn whoever_is_preferred_comes_first_and_that_was_its_turn() {
    let [first, second] = [pages(1, 0..7), pages(2, 10..17)];
    let mut dirty = dirty(&[&first, &second]);
    assert_eq!(batch(&mut dirty, Some(2)), (2, vec![10, 11, 12]));
    assert_eq!(batch(&mut dirty, Some(1)), (1, vec![0, 1, 2]));
    assert_eq!(batch(&mut dirty, None), (2, vec![13, 14, 15]));
    assert_eq!(batch(&mut dirty, Some(7)), (1, vec![3, 4, 5]), "one that has none");
}

#[test]
fn what_could_not_be_written_comes_before_what_was_filled_later_and_once() {
    let all = pages(1, 0..6);
    let mut dirty = dirty(&[&all]);
    let taken = dirty.take(3, None);
    taken.iter().chain(&taken).for_each(|page| dirty.insert(page));
    assert_eq!((dirty.len(), dirty.num_pages()), (6, 6));
    assert_eq!(batch(&mut dirty, None), (1, vec![0, 1, 2]));
    dirty.remove(&all[4]);
    dirty.remove(&all[0]);
    assert_eq!(batch(&mut dirty, None), (1, vec![3, 5]));
    assert!(dirty.take(3, Some(1)).is_empty());
}

#[test]
fn pages_that_are_gone_are_passed_over_and_do_not_pile_up() {
    let kept = pages(1, [1_000_000]);
    let mut dirty = dirty(&[&kept]);
    for id in 0..10_000 {
        pages(id as u32 % 50 + 2, [id]).iter().for_each(|page| dirty.insert(page));
        assert!(dirty.len() <= Dirty::FEW + 2);
    }
    assert_eq!(dirty.num_pages(), 1);
    assert_eq!(batch(&mut dirty, Some(30)), (1, vec![1_000_000]));
    assert!(dirty.take(3, None).is_empty());
    assert_eq!(dirty.len(), 0);
}
