//! Keyed ids: hashes that are counted instead of the ids, if clients are not trusted to choose ids.

use std::fmt;

use siphasher::sip::SipHasher24;
use thiserror::Error;

use crate::model::id::IntegerId;

/// Length of a key.
const KEY_LEN: usize = 16;
/// The text whose hash is the fingerprint of a key. It is part of the contract between instances. It is no integer, so
/// the fingerprint is not the hash of any id.
const KNOWN_TEXT: &[u8] = b"headcount id key";

/// A secret under which ids are hashed before they are counted.
///
/// The hash of the sketch is public: a client that chooses its ids chooses what the sketch sees. SipHash-2-4 is
/// a pseudorandom function: without the key a client cannot predict the hash of an id. So chosen ids act like random
/// ones. (Aumasson, Bernstein: *SipHash: a fast short-input PRF*, 2012.)
///
/// It is never shown.
#[derive(Clone)]
pub struct IdKey(SipHasher24);

/// The text is no key. The message does not show the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected 32 hexadecimal digits, not all of them zero, as `openssl rand -hex 16` prints them")]
pub struct InvalidIdKey;

impl IdKey {
    /// Reads 16 bytes as 32 hexadecimal digits, in upper or lower case.
    ///
    /// # Errors
    ///
    /// [`InvalidIdKey`] for another length, for other characters, and for zero, which is no secret.
    pub fn parse(text: &str) -> Result<Self, InvalidIdKey> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != KEY_LEN || !rest.is_empty() {
            return Err(InvalidIdKey);
        }
        let mut key = [0; KEY_LEN];
        for (byte, [high, low]) in key.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        if key == [0; KEY_LEN] {
            return Err(InvalidIdKey);
        }
        Ok(Self(SipHasher24::new_with_key(&key)))
    }

    /// Returns what is counted instead of `id`: the hash of its bytes, as an id.
    ///
    /// Two of n ids have the same hash with a probability of n²/2⁶⁵: 1 in 37 million for a million ids.
    pub fn apply(&self, id: impl AsRef<[u8]>) -> IntegerId {
        IntegerId::from(self.0.hash(id.as_ref()))
    }

    /// 16 hexadecimal digits that identify the key and may be public.
    ///
    /// They are the hash of a fixed text. The hash of one text reveals neither the key nor the hashes of other texts. An
    /// attacker can only try all 2¹²⁸ keys.
    pub fn fingerprint(&self) -> String {
        format!("{:016x}", self.0.hash(KNOWN_TEXT))
    }
}

fn digit(character: u8) -> Result<u8, InvalidIdKey> {
    let digit = char::from(character).to_digit(16).ok_or(InvalidIdKey)?;
    Ok(digit as u8)
}

impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Id;

    /// The key of the paper.
    const KEY: &str = "000102030405060708090a0b0c0d0e0f";

    /// It is SipHash with two and four rounds, and key and result are little endian.
    #[test]
    fn vectors_of_the_paper() {
        let IdKey(hasher) = IdKey::parse(KEY).unwrap();
        let text: Vec<u8> = (0..15).collect();
        for (length, hash) in [
            (0, 0x726f_db47_dd0e_0e31_u64),
            (1, 0x74f8_39c5_93dc_67fd),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
        ] {
            assert_eq!(hasher.hash(&text[..length]), hash, "{length} bytes");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [
            "",
            "0",
            &KEY[1..],
            &KEY[2..],
            &format!("{KEY}0"),
            &format!("{KEY}00"),
            &KEY.repeat(2),
            &format!("0x{}", &KEY[2..]),
            &format!("+{}", &KEY[1..]),
            &format!(" {}", &KEY[1..]),
            &KEY.replace('f', "g"),
            &KEY.replace("0f", "\u{e9}"),
            &KEY.replace('f', "\u{ff16}"),
            &"0".repeat(32),
        ] {
            assert_eq!(IdKey::parse(text).err(), Some(InvalidIdKey), "{text:?}");
        }
        assert_eq!(
            IdKey::parse(KEY).unwrap().fingerprint(),
            IdKey::parse(&KEY.to_uppercase()).unwrap().fingerprint()
        );
    }

    /// Instances of different releases count together, so both are a contract: this pins them.
    #[test]
    fn what_becomes_of_an_id_never_changes() {
        let key = IdKey::parse(KEY).unwrap();
        let of = |id: &[u8]| key.apply(IntegerId::parse(id).unwrap()).to_string();
        assert_eq!(
            [of(b"0"), of(b"42"), of(b"-1")],
            ["5676083054106314383", "2333533692843879699", "12154980789504152878"]
        );
        assert_eq!(key.fingerprint(), "a0465642ebd669e9");
        assert_eq!([of(b"007"), of(b"-0")], [of(b"7"), of(b"0")], "one number is one id");
    }

    #[test]
    fn keys_have_nothing_in_common() {
        let (key, other) = (IdKey::parse(KEY).unwrap(), IdKey::parse(&KEY.replace("00", "80")).unwrap());
        let ids = (0..1000_u64).map(IntegerId::from);
        assert!(ids.clone().all(|id| key.apply(id) != other.apply(id) && key.apply(id) != id));
        assert_ne!(key.fingerprint(), other.fingerprint());
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", IdKey::parse(KEY).unwrap()), "***");
    }
}
