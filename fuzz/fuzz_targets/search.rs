#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::search::fuzz_search(data));
