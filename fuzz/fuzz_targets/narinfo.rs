#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::narinfo::fuzz_narinfo(data));
