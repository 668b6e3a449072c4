//! What is saved of a head, and read back.

use std::io::{self, Write};

use heterokv_offload::{Arena, Attachment};

use super::{HeadCache, Tail};
use crate::Result;
use crate::coded::CodedKeys;
use crate::saved::{SavedHead, write_tables};

impl HeadCache {
    /// What is saved of the head, in numbers.
    pub(crate) fn saved(&self) -> SavedHead {
        let tail = self.tail.as_ref();
        SavedHead {
            seen: self.num_tokens(),
            resident: self.resident.len(),
            window: tail.map_or(0, |tail| tail.window.len()),
            window_start: tail.map_or(0, |tail| tail.window.start()),
            coded: tail.map_or(0, Tail::num_coded),
            tables: self
                .tables()
                .map(|coder| coder.tables().iter().map(|(_, table)| table.len()).collect()),
        }
    }

    /// Writes what is saved of the head.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.resident.write(out)?;
        if let Some(tail) = &self.tail {
            tail.write(out)?;
        }
        self.held.as_ref().map_or(Ok(()), |held| held.write(out))
    }

    /// Reads what was written of a head into one that is empty and has no tables.
    pub(crate) fn read(
        &mut self,
        saved: &SavedHead,
        device: &Arena,
        data: &mut Attachment,
    ) -> Result<()> {
        self.resident.read(device, (0, saved.resident), data)?;
        if let Some(tail) = &mut self.tail {
            tail.read(saved, device, data)?;
        }
        let tokens = (saved.seen, saved.num_held());
        self.held.as_mut().map_or(Ok(()), |held| held.read(tokens, data))
    }
}

impl Tail {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.window.write(out)?;
        match &self.coded {
            None => self.query_energy.iter().try_for_each(|sum| out.write_all(&sum.to_le_bytes())),
            Some(keys) => {
                write_tables(keys.coder(), out)?;
                keys.write(out)
            }
        }
    }

    fn read(&mut self, saved: &SavedHead, device: &Arena, data: &mut Attachment) -> Result<()> {
        self.window.read(device, (saved.window_start, saved.window), data)?;
        match saved.read_coder(self.plan.format, self.query_energy.len(), data)? {
            None => saved.read_energy(&mut self.query_energy, data),
            Some(coder) => {
                let keys = self.coded.insert(CodedKeys::new(coder, device)?);
                keys.read(device, saved.coded, data)
            }
        }
    }
}
