//! The word that was probably meant by one that nobody knows.

/// The candidate most like `word`, if it is like it at all: at most a third of its letters differ,
/// or it has the same last part in another section.
pub fn nearest<'a>(word: &str, all: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
    let word_chars: Vec<char> = word.chars().take(WORD_CHARS_MAX).collect();
    let allowed = (word_chars.len() / 3).clamp(1, 4);
    let measure = |candidate: &'a str| {
        let distance = edits(&word_chars, &candidate.chars().collect::<Vec<_>>());
        let moved = last(candidate) == last(word);
        (distance <= allowed || moved).then_some((distance, candidate))
    };
    all.filter_map(measure).min().map(|(_, candidate)| candidate)
}

/// Characters of a word that are compared: more than any key has.
const WORD_CHARS_MAX: usize = 64;

/// Levenshtein's distance, with two letters in the wrong order as one mistake.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut above: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let changed = row[j] + usize::from(x != y);
            let mut least = changed.min(next[j] + 1).min(row[j + 1] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(above[j - 1] + 1);
            }
            next.push(least);
        }
        above = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_one_that_is_like_it_at_all() {
        let all = || ["info", "warn", "queue.items_max", "batch.items_max"].into_iter();
        assert_eq!(nearest("inof", all()), Some("info"), "two letters in the wrong order");
        assert_eq!(nearest("qeue.items_max", all()), Some("queue.items_max"));
        assert_eq!(nearest("items_max", all()), Some("batch.items_max"), "in any section");
        assert_eq!(nearest("verbose", all()), None);
        assert_eq!(nearest("", all()), None);
    }
}
